"""``moec evaluate``: several models on the same data, side by side, with confidence intervals of their differences."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec import targets
from moec.artifacts.loading import ready
from moec.common.errors import MoecError, reporting
from moec.common.progress import Progress, silent
from moec.common.specs import TensorSpec
from moec.compiling import compiler
from moec.ir.blocks import expert_bits
from moec.runtime.artifact import open_artifact
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.targets.kind import ProgramKind
from moec.tools import paired
from moec.tools.data import Batch, Data, KeptTokenizer, TextOptions, check_limits, is_text, token_input
from moec.tools.labels import LABELS, LabelSource, Positions, judged_output
from moec.tools.metrics import METRICS, metric_named, values_of

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

    Raises MoecError for models that take different inputs, data and labels that do not fit them, metrics whose labels
    or models are missing, and an artifact that cannot be loaded.
    """
    chosen = list(dict.fromkeys(metrics))
    with_first = [name for name in chosen if metric_named(name).with_first]
    if not models:
        raise MoecError("no model to evaluate; give artifacts or ONNX files")
    if with_first and len(models) == 1:
        raise MoecError(f"{with_first[0]} compares with the first model; give at least two")
    contestants = _loaded(models, threads, emulate, progress)
    _check_alike(contestants)
    first = contestants[0][1]
    judged = judged_output(first.outputs, token_input(first.inputs) is not None, output)
    if text is None or text.tokenizer is None:
        text = dataclasses.replace(text or TextOptions(), kept=_kept_tokenizer(contestants, data))
    sources = [Data(path, first.inputs, text, LABELS, first.states) for path in data]
    run = _EvaluationRun(contestants, judged, LabelSource(first.inputs, judged, labels), chosen)
    for batch, where in _batches(sources, first.interface.limits, progress):
        run.add(batch, where)
    return run.result()


def _loaded(
    models: Sequence[ModelOrPath], threads: int | None, emulate: bool, progress: Callable[[str], None]
) -> list[tuple[str, CompiledModel]]:
    """Load artifacts and compile other models. Returns names and models. Artifacts come first, so that one that cannot
    run here is refused before anything is compiled."""
    from moec.frontend.huggingface import CONFIG

    loaded: dict[int, tuple[str, CompiledModel]] = {}
    for compiles in (False, True):
        for at, model in enumerate(models):
            if isinstance(model, CompiledModel):
                loaded[at] = f"model {at + 1}", model
                continue
            path = pathlib.Path(model)
            if compiles == (path.suffix == ".zip" or (path.is_dir() and not (path / CONFIG).is_file())):
                continue
            progress(f"{path}")
            compiled = compiler.compile(path, threads=threads) if compiles else _artifact(path, threads, emulate)
            loaded[at] = str(model), compiled
    return [loaded[at] for at in range(len(models))]


@reporting("loading")
def _artifact(path: pathlib.Path, threads: int | None, emulate: bool) -> CompiledModel:
    """Load an artifact. ``emulate`` applies only to artifacts that run on a device."""
    artifact = open_artifact(path)
    kind = targets.kind_of(artifact.manifest.target)
    on_device = isinstance(kind, ProgramKind) and kind.has_device
    return ready(artifact, LoadOptions(threads=threads, emulate=emulate and on_device))


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


class _EvaluationRun:
    """Sums of all models' metrics over rows of data, to which batches are added one after another."""

    def __init__(
        self,
        models: Sequence[tuple[str, CompiledModel]],
        output: TensorSpec,
        judge: LabelSource,
        metrics: Sequence[str],
    ) -> None:
        self._models, self._output, self._judge, self._metrics = models, output, judge, list(metrics)
        self._inputs = {spec.name for spec in models[0][1].inputs}
        self._sums: dict[tuple[int, str], list[Array]] = {}
        self._counts: dict[str, list[Array]] = {}
        self._nan = np.zeros((len(models), 2), np.int64)
        self._rows = 0

    def add(self, batch: Batch, where: str) -> None:
        outputs = [self._outputs_of(name, model, batch, where) for name, model in self._models]
        for at, output in enumerate(outputs):
            if output.shape != outputs[0].shape:
                raise MoecError(
                    f"{self._models[at][0]}: makes {self._output.name} {list(output.shape)} of {where}, and "
                    f"{self._models[0][0]} makes {list(outputs[0].shape)}; expected the same model"
                )
            nan = np.isnan(output)
            self._nan[at] += nan.sum(), nan.any(axis=tuple(range(1, nan.ndim))).sum()
        self._choose_metrics(batch, where)
        self._rows += len(outputs[0])
        labelled = self._judge.positions(batch, outputs[0], where)
        everywhere = self._judge.all_positions(batch, outputs[0])
        for name in self._metrics:
            positions = everywhere if METRICS[name].with_first else labelled
            for at, output in enumerate(outputs):
                self._add_values(at, name, output, outputs[0], positions)

    def _add_values(self, at: int, name: str, actual: Array, first: Array, positions: Positions) -> None:
        other = first if positions.labels is None else positions.labels
        sums, counts = values_of(METRICS[name], actual, other, positions.counted)
        kept = counts > 0
        self._sums.setdefault((at, name), []).append(sums[kept])
        if at == 0:
            self._counts.setdefault(name, []).append(counts[kept])

    def _outputs_of(self, name: str, model: CompiledModel, batch: Batch, where: str) -> Array:
        try:
            outputs = model.run({name: batch[name] for name in batch.keys() & self._inputs})
        except MoecError as error:
            raise type(error)(f"{name}: {where}: {error}") from error
        if self._output.name not in outputs:
            raise MoecError(f"{name}: has no output {self._output.name!r}, as the first has: it has {sorted(outputs)}")
        return outputs[self._output.name]

    def _choose_metrics(self, batch: Batch, where: str) -> None:
        labelled = self._judge.has_labels(batch)
        if not self._metrics:
            if not labelled and len(self._models) == 1:
                raise MoecError(f"{where}: has no labels to judge by; add --labels FILE, or give two models to compare")
            self._metrics = ["loss", "top1"] if labelled else ["kl", "cosine"]
        needing = [name for name in self._metrics if not METRICS[name].with_first]
        if needing and not labelled:
            raise MoecError(
                f"{where}: {needing[0]} needs labels; expected an array {LABELS!r} in the data, --labels FILE, "
                "or a model that takes token ids [rows, length] and makes [rows, length, vocabulary]"
            )

    def result(self) -> Evaluation:
        self._judge.finish()
        counts = {name: np.concatenate(pieces) for name, pieces in self._counts.items()}
        if not counts or not all(count.size for count in counts.values()):
            raise MoecError("the data holds no position to judge; expected rows, of two tokens or more where they tell")
        predictions = [int(count.sum()) for name, count in counts.items() if not METRICS[name].with_first]
        models = [self._judged(at, counts) for at in range(len(self._models))]
        return Evaluation(self._output.name, self._rows, max(predictions, default=0), models)

    def _judged(self, at: int, counts: dict[str, Array]) -> Judged:
        name, model = self._models[at]
        described = model.describe()
        qualities = {metric: self._quality(at, metric, counts[metric]) for metric in self._metrics}
        bits, size = expert_bits(described["moe_blocks"]), sum(weight["bytes"] for weight in described["weights"])
        elements, rows = map(int, self._nan[at])
        errors = {loss["layer"]: loss["output_error"] for loss in described["losses"]}
        return Judged(name, size, bits, elements, rows, qualities, errors)

    def _quality(self, at: int, metric: str, counts: Array) -> MetricValue:
        own, first = (np.concatenate(self._sums[contestant, metric]) for contestant in (at, 0))
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
