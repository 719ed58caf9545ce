"""The weights of experts as the graph stores them: one expert at a time, whatever way round they lie."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec
from moec.ir.encodings import Encoded
from moec.ir.formats import WeightRun, weight_runs
from moec.ir.mapped_files import release_pages


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A weight operand whose experts may differ in format."""

    name: str
    runs: tuple[WeightRun, ...]

    @staticmethod
    def of(value: ir.Value) -> StoredWeight:
        """Raises UnsupportedError for a weight that is not stored, but computed."""
        return StoredWeight(str(value.name), tuple(weight_runs(value)))

    @property
    def experts(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix of one expert, as the graph has it."""
        return self.runs[0].shape

    def out_in(self, transposed: bool) -> tuple[int, int]:
        """How many outputs and inputs the matrix has; ``transposed``: inputs are its rows."""
        rows, columns = self.shape
        return (columns, rows) if transposed else (rows, columns)

    def run_of(self, expert: int) -> WeightRun:
        """The experts stored like this one."""
        return next(run for run in self.runs if expert < run.first + run.count)

    def encoded(self, expert: int, transposed: bool) -> Encoded:
        """What is stored of one expert, inputs first."""
        return oriented(self.run_of(expert).encoded(expert), transposed)

    def decoded(self, expert: int, transposed: bool) -> np.ndarray:
        """The numbers of one expert, inputs first, in float32.

        Raises UnsupportedError for float64, which no kernel computes in."""
        run = self.run_of(expert)
        if run.format.name == "float64":
            raise UnsupportedError("weights are float64; expected float32, float16, bfloat16 or a quantised format")
        numbers = run.decoded(expert)
        return numbers if transposed else numbers.T

    def has_finite_floats(self) -> bool:
        """Whether no weight that is stored as a float is infinite or NaN; reads them all."""
        for run in self.runs:
            for expert in range(run.first, run.first + run.count) if not run.format.quantized else ():
                if not np.isfinite(run.encoded(expert).data).all():
                    return False
                release_pages()
        return True


def oriented(encoded: Encoded, transposed: bool) -> Encoded:
    """What is stored of one matrix with inputs first: [in, out], scales [groups, out]."""
    if transposed:
        return encoded
    transposed_parts = (None if part is None else part.T for part in encoded[1:])
    return Encoded(encoded.data.T, *transposed_parts)


def split(spec: ExpertsSpec, fused: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gate and up parts of an array that holds both along its last axis."""
    if spec.gate_layout == "interleaved":
        return fused[..., 0::2], fused[..., 1::2]
    half = fused.shape[-1] // 2
    first, second = fused[..., :half], fused[..., half:]
    return (first, second) if spec.gate_layout == "gate_up" else (second, first)


def split_encoded(spec: ExpertsSpec, fused: Encoded) -> tuple[Encoded, Encoded]:
    """The same of a stored matrix [in, out]."""
    halves = [(None, None) if part is None else split(spec, part) for part in fused]
    gate, up = zip(*halves, strict=True)
    return Encoded(*gate), Encoded(*up)
