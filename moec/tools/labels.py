"""The output by which a model is judged, the positions of it that count, and their labels."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.array_files import read_arrays
from moec.common.dtypes import dtype_of
from moec.common.errors import MoecError
from moec.common.specs import TensorSpec
from moec.tools.data import token_input

Array = np.ndarray[Any, Any]

LABELS = "labels"
"""Array with the labels in a file of inputs, or of labels alone."""
IGNORED = -100
"""Label of a position that does not count, as in PyTorch's losses."""


@dataclasses.dataclass(frozen=True)
class Positions:
    """``counted``: whether each vector of an output [rows, ..., classes] counts; ``labels`` [rows, ...]: the right
    classes, None where they are unknown."""

    counted: Array
    labels: Array | None = None


def judged_output(outputs: Sequence[TensorSpec], tokens: bool, name: str | None) -> TensorSpec:
    """Select the output to judge: the one of that name; else the only one of floats; of several, in a model of
    ``tokens``, the only one [rows, length, vocabulary]. Raises MoecError where that leaves none or several."""
    floats = [spec for spec in outputs if dtype_of(spec.dtype).kind not in "iub" and len(spec.shape) > 1]
    chosen = [spec for spec in floats if spec.name == name] if name is not None else floats
    if len(chosen) > 1 and tokens:
        chosen = [spec for spec in chosen if len(spec.shape) == 3]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(map(str, outputs))
    if name is not None:
        raise MoecError(f"no output {name!r} has floats [rows, ..., classes]; the outputs that have are {listed}")
    raise MoecError(f"{len(chosen)} outputs can be judged: {listed}; choose one: --output-name NAME")


class LabelSource:
    """Source of labels for batches, in the order of the data.

    ``path``: a file of labels for all rows of the data. Without it they are an array of the data itself or, in a
    language model, the next tokens.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], output: TensorSpec, path: str | os.PathLike[str] | None = None, row: int = 0
    ) -> None:
        """Begin at a row of the file. Raises MoecError for a file without labels."""
        tokens = token_input(inputs)
        self._tokens = tokens.name if tokens is not None and len(output.shape) == 3 else None
        self.path, self._labels, self._row = path, None if path is None else _read(path), row

    def positions(self, batch: Mapping[str, Array], output: Array, where: str) -> Positions:
        """Find the positions of a batch that have labels, for metrics that need them. Raises MoecError for labels that
        do not fit the output [rows, ..., classes]; ``where`` names the batch."""
        if self._labels is not None:
            labels = self._labels[self._row : self._row + len(output)]
            self._row += len(output)
            return _labelled(labels, output, f"{self.path}, {where}")
        if LABELS in batch:
            return _labelled(batch[LABELS], output, where)
        if self._tokens is None:
            return Positions(np.zeros(output.shape[:-1], bool))
        ids = batch[self._tokens]
        if ids.shape != output.shape[:2]:
            raise MoecError(f"{where}: tokens are {list(ids.shape)}, the output is {list(output.shape)}; give --labels")
        following = np.full(ids.shape, IGNORED)
        following[:, :-1] = np.where(_mask(batch, ids), ids, IGNORED)[:, 1:]
        return _labelled(following, output, where)

    def all_positions(self, batch: Mapping[str, Array], output: Array) -> Positions:
        """Find all positions of a batch that are not padding, for metrics that need no labels."""
        counted = np.ones(output.shape[:-1], bool)
        if self._tokens is not None and batch[self._tokens].shape == counted.shape:
            counted &= _mask(batch, batch[self._tokens])
        return Positions(counted)

    def has_labels(self, batch: Mapping[str, Array]) -> bool:
        return self._labels is not None or LABELS in batch or self._tokens is not None

    def finish(self, rows: int) -> None:
        """Raise MoecError where labels are left behind all ``rows`` of the data."""
        if self._labels is not None and len(self._labels) != rows:
            raise MoecError(f"{self.path}: holds labels of {len(self._labels)} rows; the data has {rows}")


def _mask(batch: Mapping[str, Array], ids: Array) -> Array:
    """Mask [rows, length] of the tokens that are not padding. The mask in the batch may begin with past tokens."""
    mask = batch.get("attention_mask")
    length = ids.shape[1]
    if mask is None or mask.ndim != 2 or len(mask) != len(ids) or mask.shape[1] < length:
        return np.ones(ids.shape, bool)
    return mask[:, mask.shape[1] - length :] != 0


def _labelled(labels: Array, output: Array, where: str) -> Positions:
    if labels.dtype.kind not in "iu":
        raise MoecError(f"{where}: labels are {labels.dtype}; expected integers")
    if labels.shape != output.shape[:-1]:
        raise MoecError(
            f"{where}: labels are {list(labels.shape)}; expected {list(output.shape[:-1])}, one for each vector of the "
            f"output {list(output.shape)}"
        )
    labels, classes = labels.astype(np.int64), output.shape[-1]
    counted = labels != IGNORED
    wrong = labels[counted & ((labels < 0) | (labels >= classes))]
    if wrong.size:
        raise MoecError(f"{where}: there is a label {wrong[0]}; expected 0 to {classes - 1}, or {IGNORED} for none")
    return Positions(counted, labels)


def _read(path: str | os.PathLike[str]) -> Array:
    arrays = read_arrays(pathlib.Path(path))
    if LABELS in arrays:
        return arrays[LABELS]
    if len(arrays) != 1:
        raise MoecError(f"{path}: holds {sorted(arrays)}; expected one array, or one that is named {LABELS!r}")
    return next(iter(arrays.values()))
