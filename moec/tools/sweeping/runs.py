"""Variants of a sweep: compiled and judged in jobs, timed here, and in ``sweep.json`` as soon as they are known."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moec.artifacts.loading import load
from moec.common.errors import DefectError, MoecError, one_line
from moec.common.jobs import Job, JobRunner
from moec.common.progress import Progress, silent
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.runtime.model import CompiledModel
from moec.tools.bench import alternate, default_cases
from moec.tools.data import Data, TextOptions
from moec.tools.evaluate import Judged, evaluate
from moec.tools.sweeping.file import Times, Variant, read_variants, write_variants
from moec.tools.sweeping.keys import key_name

_SECONDS = 1.0
"""Seconds for which each case of a variant is timed."""

Inputs = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class VariantWork:
    """Facts that the jobs of all variants share. ``threads``: those that artifacts ask for; ``job_threads``: those with
    which jobs run them."""

    model: str | os.PathLike[str]
    data: tuple[str | os.PathLike[str], ...]
    metrics: tuple[str, ...]
    labels: str | os.PathLike[str] | None
    output: str | None
    text: TextOptions
    threads: int | None
    job_threads: int | None

    def compile(self, chain: str, path: pathlib.Path, progress: Progress = silent) -> None:
        """Compile the model by a pipeline into an artifact."""
        compiler.write(self.model, path, CompileOptions(passes=chain, threads=self.threads, progress=progress))

    def judge(self, chain: str, path: pathlib.Path, first: pathlib.Path, progress: Progress = silent) -> Judged:
        """Compile the model and judge the artifact against that of the first variant."""
        self.compile(chain, path, progress)
        models = [load(artifact, threads=self.job_threads, check_weights=False) for artifact in (first, path)]
        return evaluate(
            models,
            self.data,
            metrics=self.metrics,
            labels=self.labels,
            output=self.output,
            text=self.text,
            progress=progress,
        ).models[1]

    def time(self, path: pathlib.Path, first: pathlib.Path) -> dict[str, Times]:
        """Time an artifact in turns with the first one."""
        before, own = (load(artifact, threads=self.threads, check_weights=False) for artifact in (first, path))
        batch = next(iter(Data(self.data[0], own.inputs, self.text, states=own.states)))
        return dict(map(functools.partial(_timed, before, own), [*default_cases(own)[:1], batch]))


def _timed(first: CompiledModel, own: CompiledModel, inputs: Inputs) -> tuple[str, Times]:
    case = ", ".join(f"{name}{list(array.shape)}" for name, array in inputs.items())
    seconds = alternate({"first": first.run, "own": own.run}, inputs, _SECONDS)
    return case, Times(*(statistics.median(seconds[name]) * 1e3 for name in ("own", "first")))


class VariantRun:
    """Runs the variants of a sweep that ``sweep.json`` lacks. ``requests``: pipelines and their keys, the first of
    which all are compared with; ``store``: folder of artifacts, which leave it when they are timed unless they are
    kept.

    Variants that are judged and not timed are in ``sweep.json`` without times, as long as their artifacts are beside
    it.
    """

    def __init__(
        self,
        place: pathlib.Path,
        store: pathlib.Path,
        keep: bool,
        shared: VariantWork,
        runner: JobRunner,
        requests: Sequence[tuple[str, dict[str, Any]]],
        progress: Progress,
    ) -> None:
        self._place, self._store, self._keep = place, store, keep
        self._shared, self._runner, self._progress = shared, runner, progress
        self._names = [key_name(key) for _, key in requests]
        self._requests = dict(zip(self._names, requests, strict=True))
        self._known = {key_name(variant.key): variant for variant in read_variants(place)}
        self._timed: set[str] = set()
        self.reused = 0
        self.failures: dict[str, str] = {}

    def results(self) -> list[Variant]:
        """List the variants in the order of the requests, without those that failed."""
        return [self._known[name] for name in self._names if self._requests[name][0] not in self.failures]

    def run(self) -> None:
        """Run what is missing. Raises MoecError where the first variant fails, or moec itself does."""
        first, *others = self._requests
        needed = [name for name in (first, *others) if not self._is_done(name, first)]
        self.reused = sum(name not in needed for name in self._names)
        try:
            if needed:
                self._prepare(first, is_needed=first in needed)
                self._judge([name for name in needed if name != first and not self._is_judged(name, first)], first)
                for name in needed:
                    self._time(name, first)
        finally:
            self._remove(first)

    def _prepare(self, first: str, is_needed: bool) -> None:
        """Make the artifact of the first variant, and its results where they are missing."""
        if is_needed:
            self._judge([first], first)
            self._time(first, first)
        elif not self._has_artifact(first):
            chain, _ = self._requests[first]
            self._shared.compile(chain, self._store / first, self._numbered(first))

    def _is_done(self, name: str, first: str) -> bool:
        variant, compared = self._known.get(name), self._known.get(first)
        if variant is None or compared is None or not (variant.times and variant.compares_with([compared])):
            return False
        return not self._keep or self._has_artifact(name)

    def _is_judged(self, name: str, first: str) -> bool:
        variant = self._known.get(name)
        has_same_metrics = variant is not None and variant.qualities.keys() == self._known[first].qualities.keys()
        return has_same_metrics and self._has_artifact(name)

    def _has_artifact(self, name: str) -> bool:
        return (self._store / name).is_dir()

    def _judge(self, names: Sequence[str], first: str) -> None:
        """Compile and judge variants. In this process each is timed before the next begins."""
        for number, outcome in self._runner.outcomes(self._job(name, first) for name in names):
            name = names[number]
            chain, key = self._requests[name]
            try:
                judged = outcome.result()
            except Exception as error:
                shutil.rmtree(self._store / name, ignore_errors=True)
                if name == first or isinstance(error, DefectError) or not isinstance(error, MoecError):
                    raise
                self.failures[chain] = one_line(error)
                continue
            self._put(name, _untimed(key, chain, name, judged))
            if self._runner.is_here:
                self._time(name, first)
            else:
                self._progress(f"{number + 1} of {len(names)} variants are judged")

    def _job(self, name: str, first: str) -> Job:
        chain, _ = self._requests[name]
        arguments: tuple[Any, ...] = (chain, self._store / name, self._store / first)
        if self._runner.is_here:
            arguments += (self._numbered(name),)
        return Job(f"variant {chain}", self._shared.judge, arguments)

    def _time(self, name: str, first: str) -> None:
        """Time a variant that was judged, unless this run has timed it."""
        if name in self._timed or self._requests[name][0] in self.failures:
            return
        self._timed.add(name)
        self._numbered(name)("timing")
        times, artifact = self._shared.time(self._store / name, self._store / first), name if self._keep else None
        self._put(name, dataclasses.replace(self._known[name], times=times, artifact=artifact))
        if name != first:
            self._remove(name)

    def _put(self, name: str, variant: Variant) -> None:
        """Keep what is known of a variant, unless its artifact will be gone when it is needed."""
        self._known[name] = variant
        if variant.times or self._store == self._place:
            mine = [self._known[other] for other in self._requests if other in self._known]
            write_variants(self._place, [*self._others(), *mine])

    def _others(self) -> Iterator[Variant]:
        return (variant for name, variant in self._known.items() if name not in self._requests)

    def _remove(self, name: str) -> None:
        if not self._keep:
            shutil.rmtree(self._store / name, ignore_errors=True)

    def _numbered(self, name: str) -> Progress:
        number, count = self._names.index(name) + 1, len(self._names)
        return lambda step: self._progress(f"variant {number} of {count}: {step}")


def _untimed(key: dict[str, Any], chain: str, artifact: str, judged: Judged) -> Variant:
    numbers = judged.weight_bytes, judged.expert_bits, judged.nan_outputs, judged.qualities
    return Variant(key, chain, *numbers, {}, artifact, judged.layer_errors)
