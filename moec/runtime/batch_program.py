"""The program of a batch on arrays: one run for new tokens of several sequences (:mod:`moec.ir.batches`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import DefectError, MoecError
from moec.common.specs import BATCH_TENSORS, CONVOLVED, JOINED, LAST, POSITIONS, State
from moec.runtime.artifact import Artifact
from moec.runtime.batch_entries import BatchEntries
from moec.runtime.batch_pages import BatchPages, SequencePages, page_tables
from moec.runtime.device import CapturedRuns, Device, Host
from moec.runtime.executor import Executor
from moec.runtime.interface import Interface
from moec.runtime.manifest import BatchEntry
from moec.runtime.pages import FileMaps
from moec.runtime.program import LoadedProgram
from moec.runtime.roles import roles_of
from moec.runtime.run_memory import FEW_TOKENS, FEW_TOKENS_ON_GPU
from moec.runtime.workers import Launcher

_NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class SequencePart:
    """New tokens of one sequence. ``start``: number of tokens before them. ``pages``: pages of all its tokens,
    including the new ones. ``entries``: entries with the states before and after the new tokens. ``wanted``: number of
    last tokens whose logits are computed."""

    tokens: Sequence[int]
    start: int
    pages: SequencePages
    entries: tuple[int, int]
    wanted: int

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class BatchProgram:
    """Loaded program of a batch. ``device``: device that it runs on, with the pages of its batches."""

    def __init__(
        self,
        artifact: Artifact,
        entry: BatchEntry,
        weights: Sequence[np.ndarray],
        placed: Mapping[int, Any],
        executor: Executor,
        device: Device | None = None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """``placed``: weights that are on the device already, as programs take them, by position in the manifest.
        ``executor``: executor of the model's own program; both share threads and streamed weights. ``device``: None for
        the processor. ``cuda_graphs``: whether to launch a step as a whole if it has few tokens of each sequence.
        Raises ArtifactError if the objects do not link."""
        self.entry, self._where = entry, artifact.where
        self.states: list[State] = artifact.manifest.states
        lasts = [spec.shape[1] for spec in entry.inputs if spec.name == LAST]
        self._convolved = int(lasts[0]) if lasts else 0
        self.roles = roles_of(Interface.of(artifact.manifest))
        self.few_tokens = FEW_TOKENS if device is None else FEW_TOKENS_ON_GPU
        """Most new tokens of a sequence that the kernels for few tokens compute; others compute more."""
        self.device = Host() if device is None else device
        binary = None if entry.program.binary is None else artifact.path(entry.program.binary).read_bytes()
        code = self.device if binary is None else self.device.with_code(binary)
        self._program = LoadedProgram(artifact.object_paths(entry.program), artifact.where, code, executor.streamed)
        self._maps = FileMaps(weights)
        sums_differ = _crossovers_that_change_sums(entry) if device is None else set()
        entries = zip(entry.program.weights, artifact.weight_entries(entry.program), weights, strict=True)
        self._weights = [
            self._as_taken(np.full_like(array, _NEVER))
            if weight.name in sums_differ
            else placed[at]
            if at in placed
            else self._as_taken(array)
            for at, weight, array in entries
        ]
        # A device computes without threads of ours, and its current stream is the calling thread's.
        threads = executor.threads if device is None else 1
        # Experts change places while a program runs, so two that share them take turns.
        turns = None if executor.streamed is None else executor.turns
        self._launcher = Launcher(threads, has_team=self._program.has_team, turns=turns)
        captures = cuda_graphs and not self._program.waits
        self._captured = self.device.captured_runs(self._program, self._weights) if captures else None
        self._place = self.device.placing()
        self._of_batch: tuple[BatchPages | None, dict[str, object]] = None, {}

    def _as_taken(self, array: np.ndarray) -> Any:
        return self.device.place(array) if array.ndim else int(array)

    def run(self, parts: Sequence[SequencePart], pool: BatchPages, entries: BatchEntries, page: int) -> np.ndarray:
        """Run parts of different sequences. Writes their keys and values to their pages of ``page`` tokens, and their
        other states to their entries.

        Returns logits float32 [wanted tokens of all parts, vocabulary], part by part. Raises MoecError if memory is
        insufficient, and DefectError if the program fails."""
        by_name = self._inputs(parts)
        captured = self._captured if all(len(part.tokens) <= self.few_tokens for part in parts) else None
        tensors = _told(parts, page, repeats=captured is not None)
        if self._of_batch[0] is not pool:
            memory = {**pool.arrays, **entries.arrays}
            self._of_batch = pool, {name: self.device.place(array) for name, array in memory.items()}
        in_place = self._of_batch[1]
        arrays = [in_place[spec.name] if spec.name in in_place else by_name[spec.name] for spec in self.entry.inputs]
        arguments = [*arrays, *(tensors[name] for name in BATCH_TENSORS)]
        self._maps.check(self._where)
        try:
            logits = self._launcher.run(lambda: self._results(arguments, pool, captured))
        except (MoecError, MemoryError):
            raise
        except Exception as error:
            explained = self.device.explain(error)
            if explained is not None:
                raise explained from error
            tokens = ", ".join(f"{len(part.tokens)} after {part.start}" for part in parts)
            text = " ".join(str(error).split())
            raise DefectError(f"{self._where}: the program of batches failed on tokens {tokens}: {text}") from error
        if self.entry.program.last is None:  # the program computes the logits of all tokens
            logits = logits[tensors["rows"]]
        return logits

    def _results(self, arguments: Sequence[object], pool: BatchPages, captured: CapturedRuns | None) -> np.ndarray:
        """The logits. ``captured``: graphs, which go with the pool."""
        with self.device.working([]):
            replayed = None if captured is None else captured.replay(arguments, pool)
            results = self._run_on(arguments) if replayed is None else replayed
            by_name = dict(zip((spec.name for spec in self.entry.outputs), results, strict=True))
            (logits,) = self.device.fetch_all([by_name[self.roles.logits.name]])
        return np.array(logits[0], np.float32)

    def _run_on(self, arguments: Sequence[object]) -> Sequence[Any]:
        """The results of the program, kernel by kernel. Arrays among the arguments are placed."""
        placed = iter(self._place([array for array in arguments if isinstance(array, np.ndarray)]))
        there = [next(placed) if isinstance(array, np.ndarray) else array for array in arguments]
        return self._program(there, self._weights)

    def _inputs(self, parts: Sequence[SequencePart]) -> Mapping[str, np.ndarray]:
        """The graph's inputs except states: token ids and positions."""
        ids = np.concatenate([np.asarray(part.tokens, np.int64) for part in parts])
        positions = np.concatenate([np.arange(part.start, part.end) for part in parts])
        by_name = {self.roles.ids.name: ids, POSITIONS: positions}
        by_name |= {name: positions for name, (role, _) in self.roles.filled.items() if role == "positions"}
        specs = {spec.name: spec for spec in self.entry.inputs}
        places = _convolution_places([len(part.tokens) for part in parts], self._convolved) if LAST in specs else {}
        return places | {
            name: np.ascontiguousarray(
                array.reshape([1] * (len(specs[name].shape) - 1) + [-1]), dtype_of(specs[name].dtype)
            )
            for name, array in by_name.items()
            if name in specs
        }


def _crossovers_that_change_sums(entry: BatchEntry) -> set[str]:
    """Names of the numbers of rows from which on a product adds in another order: matrix tiles add bfloat16 numbers in
    their own. A sequence would have other bits with many neighbours than with few."""
    kernels = [kernel for kernel in entry.program.kernels if kernel["attributes"].get("arithmetic") == "bfloat16"]
    return {name for kernel in kernels for name in kernel["crossovers"]}


def _convolution_places(counts: Sequence[int], before: int) -> dict[str, np.ndarray]:
    """Places of rows of convolutions, by input (:mod:`moec.compiling.batch_states`). ``counts``: new tokens of each
    sequence; ``before``: earlier rows."""
    ends = np.cumsum(counts)
    numbers = np.repeat(np.arange(len(counts)), counts)
    joined = [
        np.r_[number * before : (number + 1) * before, len(counts) * before + end - count : len(counts) * before + end]
        for number, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]
    behind = ends + before * np.arange(1, len(counts) + 1)
    return {
        JOINED: np.concatenate(joined),
        CONVOLVED: np.arange(ends[-1]) + before * numbers,
        LAST: behind[:, None] + np.arange(-before, 0),
    }


def _told(parts: Sequence[SequencePart], page: int, *, repeats: bool = False) -> Mapping[str, np.ndarray]:
    """Tensors that tell the program of the sequences, by the names of :data:`~moec.common.specs.BATCH_TENSORS`.
    ``repeats``: let tables have few sizes, powers of two, so that sizes repeat from step to step."""
    counts = np.array([len(part.tokens) for part in parts], np.int64)
    starts = np.cumsum(counts) - counts
    pages = [part.pages for part in parts]
    most = max(map(len, pages))
    table, window_table = page_tables(pages, 1 << (most - 1).bit_length() if repeats else most)
    numbers = [np.arange(part.start, part.end) for part in parts]
    rows = [
        np.arange(start + count - part.wanted, start + count)
        for part, start, count in zip(parts, starts, counts, strict=True)
    ]
    places, window_places = (
        np.concatenate([own[at // page] * page + at % page for own, at in zip(rows_of_table, numbers, strict=True)])
        for rows_of_table in (table, window_table)
    )
    return {
        "lengths": np.array([part.end for part in parts], np.int64),
        "spans": np.stack([starts, counts], axis=1),
        "table": table,
        "places": places,
        "window_table": window_table,
        "window_places": window_places,
        "rows": np.concatenate(rows),
        "entries_before": np.array([part.entries[0] for part in parts], np.int64),
        "entries_after": np.array([part.entries[1] for part in parts], np.int64),
    }
