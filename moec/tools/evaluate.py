"""``moec evaluate``: several models on the same data, side by side, with confidence intervals of their differences."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.artifacts.loading import ready
from moec.common.errors import MoecError, reporting
from moec.common.jobs import JobExecutor, JobRunner, job_runner
from moec.common.progress import Progress, silent
from moec.common.scratch import ScratchFolder
from moec.compiling import compiler
from moec.ir.blocks import expert_bits
from moec.runtime.artifact import open_artifact
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.tools import paired
from moec.tools.data import Batch, Data, KeptTokenizer, TextOptions, check_limits, is_text, token_input
from moec.tools.evaluation_jobs import compile_all, judge_batches, judging_options
from moec.tools.labels import LABELS, LabelSource, judged_output
from moec.tools.metric_sums import BatchJudge, MetricSums
from moec.tools.metrics import METRICS, metric_named

Array = np.ndarray[Any, Any]
ModelOrPath = str | os.PathLike[str] | CompiledModel

METHOD = (
    "difference to the first model, plus or minus half of its 95% confidence interval, paired over rows: the standard "
    "error of the rows' differences, times Student's t"
)


@dataclasses.dataclass(frozen=True)
class MetricValue:
    """Metric of one model. ``difference``: its value less the first model's, ``interval``: half of the difference's 95%
    confidence interval (:mod:`moec.tools.paired`). Both are None for the first model, ``interval`` for a single row,
    too."""

    value: float
    difference: float | None = None
    interval: float | None = None


@dataclasses.dataclass(frozen=True)
class Judged:
    """Results of one model. ``weight_bytes``: of all its weights in memory; ``expert_bits``: average bits of a weight
    of its experts, without scales; ``nan_outputs``: number of NaN elements of the output, in ``nan_rows`` rows.
    ``layer_errors``: by layer, the relative error of its output that rounding its weights left."""

    name: str
    weight_bytes: int
    expert_bits: float | None
    nan_outputs: int
    nan_rows: int
    qualities: dict[str, MetricValue]
    layer_errors: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of the models, in the order in which they were given, on ``rows`` rows of data. ``predictions``: number
    of positions with labels, 0 where no metric needs them."""

    output: str
    rows: int
    predictions: int
    models: list[Judged]
    method: str = METHOD

    def __repr__(self) -> str:
        metrics = ", ".join(self.models[0].qualities) if self.models else "none"
        return f"<Evaluation of {len(self.models)} models on {self.rows} rows of data: {metrics}>"

    def as_data(self) -> dict[str, Any]:
        """Convert to plain data for JSON, which has no NaN and no infinity: they become ``"nan"``, ``"inf"``,
        ``"-inf"``."""
        return finite(dataclasses.asdict(self))


@reporting("evaluating")
def evaluate(
    models: Sequence[ModelOrPath],
    data: Sequence[str | os.PathLike[str]],
    *,
    metrics: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    output: str | None = None,
    text: TextOptions | None = None,
    threads: int | None = None,
    emulate: bool = False,
    workers: int = 0,
    executor: JobExecutor | None = None,
    names: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Run every model on the same data and compare the outputs.

    ``models``: artifacts, compiled models, or ONNX files, GGUF files and folders of Hugging Face models, which are
    compiled first. ``text``: without a tokenizer in it, the models' own tokenizer is used. ``metrics``: ``loss`` (nats
    per prediction), ``perplexity`` (its exponential) and ``top1`` (share of predictions that are right) need labels;
    ``kl`` (nats per position, of the first model's softmax over the last axis from this one's) and ``cosine`` compare
    with the first model. The default is ``loss`` and ``top1`` where there are labels, else ``kl`` and ``cosine``.

    ``labels``: a file of integers, one for every vector of the output (-100: does not count). By default they are the
    array ``labels`` of the data, or, in a model that takes token ids [rows, length] and returns [rows, length,
    vocabulary], the next tokens. ``output``: name of the output to judge, where several are possible. Padding, where
    ``attention_mask`` is 0, does not count. ``emulate``: run artifacts for a GPU on the processor.

    ``workers``, ``executor``: where models are compiled and batches are run, each in one job: in so many processes of
    this machine, or on an executor of PEP 3148 whose machines see the same files, temporary ones included
    (:mod:`moec.common.jobs`). Results are the same. ``names``: of the models in the result; by default their paths, or
    ``model 1`` for the first one that is loaded.

    Raises MoecError for models that take different inputs, data and labels that do not fit them, metrics whose labels
    or models are missing, and an artifact that cannot be loaded.
    """
    chosen = list(dict.fromkeys(metrics))
    with_first = [name for name in chosen if metric_named(name).with_first]
    if not models:
        raise MoecError("no model to evaluate; give artifacts or ONNX files")
    if with_first and len(models) == 1:
        raise MoecError(f"{with_first[0]} compares with the first model; give at least two")
    with job_runner(workers, executor) as runner:
        loaded = _loaded(models, threads, emulate, runner, progress)
        contestants = list(zip(_names(models) if names is None else names, loaded, strict=True))
        _check_alike(contestants)
        first = contestants[0][1]
        judged = judged_output(first.outputs, token_input(first.inputs) is not None, output)
        if text is None or text.tokenizer is None:
            text = dataclasses.replace(text or TextOptions(), kept=_kept_tokenizer(contestants, data))
        sources = [Data(path, first.inputs, text, LABELS, first.states) for path in data]
        source = LabelSource(first.inputs, judged, labels)
        batches = _batches(sources, first.interface.limits, progress)
        if runner.is_here:
            judge = BatchJudge(contestants, judged, source, chosen)
            for batch, where in batches:
                judge.add(batch, where)
            sums = judge.sums
        else:
            each = runner.threads_each(threads)
            sums = judge_batches(contestants, judged, source, chosen, batches, each, emulate, runner)
        source.finish(sums.rows)
        return _result(contestants, judged.name, sums)


def _names(models: Sequence[ModelOrPath]) -> list[str]:
    """Name models by their paths, and loaded ones by their number."""
    return [
        f"model {at}" if isinstance(model, CompiledModel) else os.fspath(model) for at, model in enumerate(models, 1)
    ]


def _loaded(
    models: Sequence[ModelOrPath],
    threads: int | None,
    emulate: bool,
    runner: JobRunner,
    progress: Callable[[str], None],
) -> list[CompiledModel]:
    """Load artifacts and compile other models. Artifacts come first, so that one that cannot run here is refused before
    anything is compiled."""
    loaded: dict[int, CompiledModel] = {}
    sources: dict[int, pathlib.Path] = {}
    for at, model in enumerate(models):
        if isinstance(model, CompiledModel):
            if not runner.is_here:
                raise MoecError(f"model {at + 1} is loaded in this process alone; give the path of its artifact")
            loaded[at] = model
        elif _is_artifact(path := pathlib.Path(model)):
            progress(f"{path}")
            loaded[at] = _artifact(path, threads, emulate)
        else:
            sources[at] = path
    for at, compiled in zip(sources, _compiled(list(sources.values()), threads, runner, progress), strict=True):
        loaded[at] = compiled
    return [loaded[at] for at in range(len(models))]


def _is_artifact(path: pathlib.Path) -> bool:
    from moec.frontend.huggingface import CONFIG

    return path.suffix == ".zip" or (path.is_dir() and not (path / CONFIG).is_file())


def _compiled(
    sources: Sequence[pathlib.Path], threads: int | None, runner: JobRunner, progress: Callable[[str], None]
) -> Iterator[CompiledModel]:
    if runner.is_here:
        for path in sources:
            progress(f"{path}")
            yield compiler.compile(path, threads=threads)
        return
    folders = [ScratchFolder() for _ in sources]
    places = compile_all(sources, [pathlib.Path(folder.name, "model.moec") for folder in folders], threads, runner)
    for path, folder, place in zip(sources, folders, places, strict=True):
        progress(f"{path}")
        artifact = open_artifact(place, check_weights=False)
        artifact.owns(folder)
        yield ready(artifact, LoadOptions(threads=threads))


@reporting("loading")
def _artifact(path: pathlib.Path, threads: int | None, emulate: bool) -> CompiledModel:
    artifact = open_artifact(path)
    return ready(artifact, judging_options(artifact, threads, emulate))


def _kept_tokenizer(
    contestants: Sequence[tuple[str, CompiledModel]], data: Sequence[str | os.PathLike[str]]
) -> KeptTokenizer | None:
    """Select the tokenizer that all models with one share, where some of the data is text. Raises MoecError where they
    have different ones."""
    if not any(is_text(pathlib.Path(path)) for path in data):
        return None
    tokenizers: dict[str, KeptTokenizer] = {}
    for name, model in contestants:
        entry = model.artifact.manifest.text
        if entry is not None:
            content = model.artifact.text(entry.tokenizer)
            tokenizers.setdefault(content, KeptTokenizer(content, f"{name}: {entry.tokenizer}", entry.checked_by))
    if len(tokenizers) > 1:
        first, second, *_ = (codec.where for codec in tokenizers.values())
        raise MoecError(f"{second}: is another tokenizer than {first}; name one for all with --tokenizer")
    return next(iter(tokenizers.values()), None)


def _check_alike(contestants: Sequence[tuple[str, CompiledModel]]) -> None:
    """Raise MoecError unless all models take inputs of the same names, types and numbers of axes, apart from states."""
    (first_name, first), *others = contestants
    for name, model in others:
        if _kinds(model) != _kinds(first):
            takes, expected = (", ".join(map(str, contestant.inputs)) for contestant in (model, first))
            raise MoecError(f"{name}: takes {takes}, and {first_name} takes {expected}; expected the same model")


def _kinds(model: CompiledModel) -> set[tuple[str, str, int]]:
    states = {state.input for state in model.states}
    return {(spec.name, spec.dtype, len(spec.shape)) for spec in model.inputs if spec.name not in states}


def _batches(
    sources: Sequence[Data], limits: Mapping[str, int], progress: Callable[[str], None]
) -> Iterator[tuple[Batch, str]]:
    for data in sources:
        for number, batch in enumerate(data, 1):
            progress(f"{data.name}: batch {number}")
            check_limits(batch, limits, data.path)
            yield batch, f"{data.path}, batch {number}"


def _result(models: Sequence[tuple[str, CompiledModel]], output: str, sums: MetricSums) -> Evaluation:
    """Make the results of all sums. Raises MoecError where the data holds no position to judge."""
    counts = {name: np.concatenate(pieces) for name, pieces in sums.counts.items()}
    if not counts or not all(count.size for count in counts.values()):
        raise MoecError("the data holds no position to judge; expected rows, of two tokens or more where they tell")
    predictions = [int(count.sum()) for name, count in counts.items() if not METRICS[name].with_first]
    judged = [_judged(at, name, model, sums, counts) for at, (name, model) in enumerate(models)]
    return Evaluation(output, sums.rows, max(predictions, default=0), judged)


def _judged(at: int, name: str, model: CompiledModel, sums: MetricSums, counts: dict[str, Array]) -> Judged:
    described = model.describe()
    qualities = {metric: _quality(at, metric, sums, counts[metric]) for metric in sums.metrics}
    bits, size = expert_bits(described["moe_blocks"]), sum(weight["bytes"] for weight in described["weights"])
    elements, rows = map(int, sums.nan[at])
    errors = {loss["layer"]: loss["output_error"] for loss in described["losses"]}
    return Judged(name, size, bits, elements, rows, qualities, errors)


def _quality(at: int, metric: str, sums: MetricSums, counts: Array) -> MetricValue:
    own, first = (np.concatenate(sums.values[contestant, metric]) for contestant in (at, 0))
    exponential = METRICS[metric].exponential
    value = paired.quality(own, counts, exponential)
    return MetricValue(value, *(paired.difference(own, first, counts, exponential) if at else ()))


def finite(data: Any) -> Any:
    """Replace the numbers that JSON lacks by text in plain data."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
