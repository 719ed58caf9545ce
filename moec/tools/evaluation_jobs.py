"""Evaluation in jobs: one for each model that has to be compiled, and one for each batch of data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from moec import targets
from moec.common.errors import MoecError
from moec.common.jobs import Job, JobRunner
from moec.common.specs import TensorSpec
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.load_options import LoadOptions
from moec.runtime.manifest import MANIFEST
from moec.runtime.model import CompiledModel
from moec.targets.kind import ProgramKind
from moec.tools.data import Batch
from moec.tools.labels import LabelSource
from moec.tools.metric_sums import BatchJudge, MetricSums, default_metrics


@dataclasses.dataclass(frozen=True)
class _Contestant:
    """An artifact by its folder, and a digest of its manifest, so that no process takes it for what was there before.
    ``name`` names it in errors."""

    name: str
    folder: pathlib.Path
    digest: str


@dataclasses.dataclass(frozen=True)
class _SharedFacts:
    """Facts that all jobs of an evaluation share."""

    contestants: tuple[_Contestant, ...]
    threads: int | None
    emulate: bool
    output: TensorSpec
    labels: str | os.PathLike[str] | None
    metrics: tuple[str, ...]


def compile_all(
    sources: Sequence[pathlib.Path], places: Sequence[pathlib.Path], threads: int | None, runner: JobRunner
) -> Iterator[pathlib.Path]:
    """Compile models into artifacts and yield their ``places``. Raises what :func:`moec.compile` raises."""
    options = CompileOptions(threads=threads)
    jobs = (Job(f"{path}", compiler.write, (path, at, options)) for path, at in zip(sources, places, strict=True))
    for place, _ in zip(places, runner.results(jobs), strict=True):
        yield place


def judge_batches(
    models: Sequence[tuple[str, CompiledModel]],
    output: TensorSpec,
    source: LabelSource,
    metrics: Sequence[str],
    batches: Iterable[tuple[Batch, str]],
    threads: int | None,
    emulate: bool,
    runner: JobRunner,
) -> MetricSums:
    """Sum the metrics of artifacts over all batches, as :class:`BatchJudge` does in this process. Raises what that
    raises.

    Rows of a file of labels belong to rows of the output. Where the shapes of inputs do not say how many a batch
    has, jobs run one after another.
    """
    inputs = models[0][1].inputs
    total = MetricSums.of_no_row(len(models), metrics)
    counted = _counting(inputs, output)
    contestants = tuple(_contestant(name, model.artifact.folder) for name, model in models)

    def jobs() -> Iterator[Job]:
        row, chosen = 0, tuple(metrics)
        for batch, where in batches:
            if not chosen and (len(models) > 1 or source.has_labels(batch)):
                chosen = tuple(default_metrics(source.has_labels(batch)))
            shared = _SharedFacts(contestants, threads, emulate, output, source.path, chosen)
            yield Job(where, _judged, (shared, batch, where, total.rows if counted is None else row))
            row += 0 if counted is None else batch[counted[0]].shape[counted[1]]

    for part in (runner.in_turn() if source.path is not None and counted is None else runner).results(jobs()):
        total.join(part)
    return total


def _counting(inputs: Sequence[TensorSpec], output: TensorSpec) -> tuple[str, int] | None:
    """Find an input and its axis of as many elements as the output has rows. Returns None where none is known."""
    size = output.shape[0]
    places = ((spec.name, axis) for spec in inputs for axis, other in enumerate(spec.shape) if other == size)
    return next(places, None) if isinstance(size, str) else None


def _judged(shared: _SharedFacts, batch: Batch, where: str, row: int) -> MetricSums:
    names = [contestant.name for contestant in shared.contestants]
    models = list(zip(names, _models(shared.contestants, shared.threads, shared.emulate), strict=True))
    source = LabelSource(models[0][1].inputs, shared.output, shared.labels, row)
    judge = BatchJudge(models, shared.output, source, shared.metrics)
    judge.add(batch, where)
    return judge.sums


@functools.lru_cache(1)
def _models(contestants: Sequence[_Contestant], threads: int | None, emulate: bool) -> list[CompiledModel]:
    """Load the models that this process judges. They stay until others are asked for."""
    return [_loaded(contestant, threads, emulate) for contestant in contestants]


def _loaded(contestant: _Contestant, threads: int | None, emulate: bool) -> CompiledModel:
    from moec.artifacts.loading import ready

    artifact = open_artifact(contestant.folder, check_weights=False)
    if _contestant(contestant.name, contestant.folder) != contestant:
        raise MoecError(f"{contestant.name}: was changed during the evaluation; start it again")
    return ready(artifact, judging_options(artifact, threads, emulate))


def _contestant(name: str, folder: pathlib.Path) -> _Contestant:
    return _Contestant(name, folder, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())


def judging_options(artifact: Artifact, threads: int | None, emulate: bool) -> LoadOptions:
    """Options for an artifact that is judged. ``emulate`` applies only to those that run on a device."""
    kind = targets.kind_of(artifact.manifest.target)
    on_device = isinstance(kind, ProgramKind) and kind.has_device
    return LoadOptions(threads=threads, emulate=emulate and on_device)
