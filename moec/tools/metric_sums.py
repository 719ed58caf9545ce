"""Sums of metrics over batches: those of several parts of the data, joined, are those of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.common.errors import MoecError
from moec.common.specs import TensorSpec
from moec.runtime.model import CompiledModel
from moec.tools.data import Batch
from moec.tools.labels import LABELS, LabelSource, Positions
from moec.tools.metrics import METRICS, values_of

Array = np.ndarray[Any, Any]


@dataclasses.dataclass
class MetricSums:
    """Sums of the ``metrics`` of several models. ``values``: sums [rows] by model and metric, and ``counts`` [rows] of
    their positions by metric, batch by batch; ``nan`` [models,2]: NaN elements of the output, and rows with any."""

    metrics: list[str]
    nan: Array
    values: dict[tuple[int, str], list[Array]] = dataclasses.field(default_factory=dict)
    counts: dict[str, list[Array]] = dataclasses.field(default_factory=dict)
    rows: int = 0

    @staticmethod
    def of_no_row(models: int, metrics: Sequence[str]) -> MetricSums:
        return MetricSums(list(metrics), np.zeros((models, 2), np.int64))

    def join(self, following: MetricSums) -> None:
        """Add the sums of the data behind these."""
        self.metrics = following.metrics
        self.nan += following.nan
        self.rows += following.rows
        for key, arrays in following.values.items():
            self.values.setdefault(key, []).extend(arrays)
        for name, arrays in following.counts.items():
            self.counts.setdefault(name, []).extend(arrays)


class BatchJudge:
    """Runs models on batches and sums their metrics: those asked for, or else those that the first batch allows."""

    def __init__(
        self,
        models: Sequence[tuple[str, CompiledModel]],
        output: TensorSpec,
        labels: LabelSource,
        metrics: Sequence[str],
    ) -> None:
        self._models, self._output, self._labels = models, output, labels
        self._inputs = {spec.name for spec in models[0][1].inputs}
        self.sums = MetricSums.of_no_row(len(models), metrics)

    def add(self, batch: Batch, where: str) -> None:
        """Add a batch, which ``where`` names in errors. Raises MoecError for outputs of other shapes than the first
        model's, labels that do not fit, and metrics that need what is not there."""
        sums = self.sums
        outputs = [self._outputs_of(name, model, batch, where) for name, model in self._models]
        for at, output in enumerate(outputs):
            if output.shape != outputs[0].shape:
                raise MoecError(
                    f"{self._models[at][0]}: makes {self._output.name} {list(output.shape)} of {where}, and "
                    f"{self._models[0][0]} makes {list(outputs[0].shape)}; expected the same model"
                )
            nan = np.isnan(output)
            sums.nan[at] += nan.sum(), nan.any(axis=tuple(range(1, nan.ndim))).sum()
        self._choose_metrics(batch, where)
        sums.rows += len(outputs[0])
        labelled = self._labels.positions(batch, outputs[0], where)
        everywhere = self._labels.all_positions(batch, outputs[0])
        for name in sums.metrics:
            positions = everywhere if METRICS[name].with_first else labelled
            for at, output in enumerate(outputs):
                self._add_values(at, name, output, outputs[0], positions)

    def _add_values(self, at: int, name: str, actual: Array, first: Array, positions: Positions) -> None:
        other = first if positions.labels is None else positions.labels
        sums, counts = values_of(METRICS[name], actual, other, positions.counted)
        kept = counts > 0
        self.sums.values.setdefault((at, name), []).append(sums[kept])
        if at == 0:
            self.sums.counts.setdefault(name, []).append(counts[kept])

    def _outputs_of(self, name: str, model: CompiledModel, batch: Batch, where: str) -> Array:
        try:
            outputs = model.run({name: batch[name] for name in batch.keys() & self._inputs})
        except MoecError as error:
            raise type(error)(f"{name}: {where}: {error}") from error
        if self._output.name not in outputs:
            raise MoecError(f"{name}: has no output {self._output.name!r}, as the first has: it has {sorted(outputs)}")
        return outputs[self._output.name]

    def _choose_metrics(self, batch: Batch, where: str) -> None:
        labelled = self._labels.has_labels(batch)
        if not self.sums.metrics:
            if not labelled and len(self._models) == 1:
                raise MoecError(f"{where}: has no labels to judge by; add --labels FILE, or give two models to compare")
            self.sums.metrics = default_metrics(labelled)
        needing = [name for name in self.sums.metrics if not METRICS[name].with_first]
        if needing and not labelled:
            raise MoecError(
                f"{where}: {needing[0]} needs labels; expected an array {LABELS!r} in the data, --labels FILE, "
                "or a model that takes token ids [rows, length] and makes [rows, length, vocabulary]"
            )


def default_metrics(labelled: bool) -> list[str]:
    """List the metrics where none are asked for."""
    return ["loss", "top1"] if labelled else ["kl", "cosine"]
