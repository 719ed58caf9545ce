"""Running a sweep: new variants are compiled, judged against the first one and timed in turns with it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moec.common.errors import DefectError, MoecError, one_line, reporting
from moec.common.progress import Progress, silent
from moec.common.replacing import check_replaceable
from moec.common.seals import foreign_file
from moec.common.version import VERSION
from moec.compiling import compiler
from moec.frontend.onnx.importer import files_of
from moec.passes import pipeline
from moec.runtime.model import CompiledModel
from moec.tools.bench import alternate, default_cases
from moec.tools.data import Data, TextOptions, with_tokenizer_of
from moec.tools.evaluate import evaluate
from moec.tools.metrics import METRICS, metric_named
from moec.tools.sweeping.file import NAME, Times, Variant, foreign, read_variants, write_variants
from moec.tools.sweeping.front import on_front

PAGE = "sweep.html"
_SECONDS = 1.0
"""Seconds for which each case of a variant is timed."""

Inputs = dict[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Variants in the requested order; ``reused``: number of those that had been run before; ``failures``: one line for
    each pipeline that failed."""

    variants: list[Variant]
    reused: int = 0
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Metric of the fronts: the first one."""
        return next(iter(self.variants[0].qualities))

    def costs(self) -> dict[str, list[float | None]]:
        """Costs of each variant, by the name of the cost: bytes of weights, bits of a weight of its experts, and for
        each case its time as a share of the first variant's, which was measured in turns with it."""
        costs: dict[str, list[float | None]] = {
            "weights, bytes": [variant.weight_bytes for variant in self.variants],
            "bits of experts": [variant.expert_bits for variant in self.variants],
        }
        for case in self.variants[0].times:
            costs[f"time, {case}"] = [variant.times[case].share for variant in self.variants]
        return costs

    def fronts(self) -> dict[str, list[bool]]:
        """Find, for each cost, the variants that no other beats in both that cost and quality."""
        sign = -1 if METRICS[self.metric].more_is_better else 1
        losses = [sign * variant.qualities[self.metric].value for variant in self.variants]
        return {name: on_front(list(zip(costs, losses, strict=True))) for name, costs in self.costs().items()}


@reporting("sweeping")
def sweep(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    pipelines: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    output: str | None = None,
    text: TextOptions | None = None,
    threads: int | None = None,
    keep: bool = False,
    progress: Progress = silent,
) -> Sweep:
    """Compile a model by every pipeline, judge and time the results, and write ``sweep.json`` into ``folder``, which is
    created if necessary.

    ``pipelines``: the others are compared with the first; see :func:`moec.tools.sweeping.variants`. ``metrics``,
    ``labels``, ``output`` and ``text`` as for :func:`moec.tools.evaluate.evaluate`. ``keep``: leave artifacts in the
    folder. Results in ``sweep.json`` for the same model, data, files and pipelines, by this version of moec, are
    reused, and each new result is written at once. A pipeline that fails is noted, unless it is the first.

    Raises MoecError for a model, data or pipelines that cannot be used, and a folder with files that are not moec's.
    """
    if not pipelines:
        raise MoecError("no pipeline to try; expected at least one, such as O2")
    place = _prepared(pathlib.Path(folder), model)
    earlier = read_variants(place)
    progress("reading")
    text = with_tokenizer_of(text, model, data)
    settings = {"metrics": list(metrics), "output": output, "threads": threads, "first": _written_out(pipelines[0])}
    keys = list(map(Keys(model, data, labels, text, settings).of, pipelines))
    judged = functools.partial(evaluate, metrics=metrics, labels=labels, output=output, text=text, threads=threads)
    runner = _Runner(model, data, pipelines[0], place if keep else None, judged, text, threads)
    results, failures, reused = [], {}, 0
    for at, (chain, key) in enumerate(zip(pipelines, keys, strict=True)):
        old = next((other for other in earlier if other.key == key and other.compares_with(results[:1])), None)
        if old is not None and (not keep or _is_kept(place, old)):
            results, reused = [*results, old], reused + 1
            continue
        try:
            variant = runner.run(chain, key, _numbered(progress, at + 1, len(pipelines)))
        except MoecError as error:
            if at == 0 or isinstance(error, DefectError):
                raise
            failures[chain] = one_line(error)
            continue
        results.append(variant)
        earlier = [other for other in earlier if other.key != key] + [variant]
        write_variants(place, earlier)
    return Sweep(results, reused, failures)


def _numbered(progress: Progress, number: int, count: int) -> Progress:
    return lambda step: progress(f"variant {number} of {count}: {step}")


def _prepared(folder: pathlib.Path, model: str | os.PathLike[str]) -> pathlib.Path:
    if not pathlib.Path(model).exists():
        raise MoecError(f"{model}: no such file; expected an ONNX model")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MoecError(f"{folder}: cannot be made: {error.strerror or error}; choose another folder") from error
    check_replaceable(folder / NAME, foreign)
    check_replaceable(folder / PAGE, foreign_file)
    return folder


def _is_kept(folder: pathlib.Path, variant: Variant) -> bool:
    return variant.artifact is not None and (folder / variant.artifact).is_dir()


class Keys:
    """Keys of variants, which hold everything except the machine that the numbers depend on."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        data: Sequence[str | os.PathLike[str]],
        labels: str | os.PathLike[str] | None,
        text: TextOptions,
        settings: dict[str, Any],
    ) -> None:
        for name in settings["metrics"]:
            metric_named(name)
        self._common = {
            "moec": VERSION,
            "model": [_sha256(path) for path in files_of(model)],
            "data": [Data(path, (), text).sha256() for path in data],
            "labels": None if labels is None else _sha256(pathlib.Path(labels)),
            "text": [text.tokenizer_sha256(), text.length, text.batch, text.limit],
            **settings,
        }
        self._hash = functools.cache(_sha256)

    def of(self, chain: str) -> dict[str, Any]:
        """Make the key of a pipeline. Raises MoecError for one that cannot be parsed."""
        files = {path: self._hash(pathlib.Path(path)) for part in pipeline.parse(chain) for path in _files(part)}
        return {**self._common, "pipeline": _written_out(chain), "files": files}


def _written_out(chain: str) -> str:
    return pipeline.print_pipeline(pipeline.parse(chain))


def _files(options: Any) -> Iterator[str]:
    """List the files that a pass's options name."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, str) and pathlib.Path(value).is_file():
            yield value


def _sha256(path: pathlib.Path) -> str:
    from moec.runtime.artifact import checksum

    try:
        return checksum(path).sha256
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Runner:
    """Compiles, judges and times variants. The first one is compiled when another needs it."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        data: Sequence[str | os.PathLike[str]],
        first: str,
        kept: pathlib.Path | None,
        judged: Callable[..., Any],
        text: TextOptions | None,
        threads: int | None,
    ) -> None:
        self._model, self._data, self._first_chain, self._kept = model, data, first, kept
        self._judged, self._text, self._threads = judged, text, threads
        self._first: CompiledModel | None = None

    def run(self, chain: str, key: dict[str, Any], progress: Progress) -> Variant:
        artifact = f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]}.moec"
        compiled = self._compiled(chain, None if self._kept is None else self._kept / artifact, progress)
        if self._first is None:
            own = chain == self._first_chain
            self._first = compiled if own else self._compiled(self._first_chain, None, progress)
        _, judged = self._judged([self._first, compiled], self._data, progress=progress).models
        progress("timing")
        batch = next(iter(Data(self._data[0], compiled.inputs, self._text, states=compiled.states)))
        cases = [*default_cases(compiled)[:1], batch]
        return Variant(
            key,
            chain,
            judged.weight_bytes,
            judged.expert_bits,
            judged.nan_outputs,
            judged.qualities,
            dict(map(functools.partial(_timed, self._first, compiled), cases)),
            None if self._kept is None else artifact,
            judged.layer_errors,
        )

    def _compiled(self, chain: str, output: pathlib.Path | None, progress: Progress) -> CompiledModel:
        return compiler.compile(self._model, passes=chain, threads=self._threads, output=output, progress=progress)


def _timed(first: CompiledModel, own: CompiledModel, inputs: Inputs) -> tuple[str, Times]:
    case = ", ".join(f"{name}{list(array.shape)}" for name, array in inputs.items())
    seconds = alternate({"first": first.run, "own": own.run}, inputs, _SECONDS)
    return case, Times(*(statistics.median(seconds[name]) * 1e3 for name in ("own", "first")))
