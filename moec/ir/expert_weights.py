"""The weights of the experts of a node, by expert and by part, independent of their operands and layouts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec
from moec.ir.weight_operands import stored_weights
from moec.ir.weights.encode import Table, decode, per_element
from moec.ir.weights.lazy import LazyMatrix
from moec.ir.weights.stored import StoredWeight, constant

Array = np.ndarray[Any, Any]
Part = Literal["gate", "up", "down"]


class ExpertWeights:
    """The weights and biases of the experts of a ``moec.Experts`` or ``moec.MoE`` node, read one expert at a time.

    An expert has the parts gate (if it is gated), up and down, also where one operand holds gate and up. A part is a
    matrix [in, out]: gate and up are [``inner``, ``hidden``], down is [``hidden``, ``width``]. Expert e has the first
    ``sizes[e]`` of the ``hidden`` units; the others are stored, but ignored. Only the requested expert is read.

    Raises UnsupportedError for a weight that is not stored in one of the ways of :mod:`moec.ir.weights.stored`.
    """

    def __init__(self, node: ir.Node) -> None:
        self.spec = dialect.spec_of(node, ExpertsSpec)
        self.operands = stored_weights(node)
        self._inputs = dialect.inputs_of(node)
        self._last: tuple[int, dict[str, LazyMatrix]] = (-1, {})
        self._biases: dict[str, Array] = {}

    @property
    def experts(self) -> int:
        """Number of experts of the node."""
        return self.operands["down"].experts

    @property
    def inner(self) -> int:
        return self.operands["up"].out_in(self.spec.up_transposed)[1]

    @property
    def hidden(self) -> int:
        return self.operands["down"].out_in(self.spec.down_transposed)[1]

    @property
    def width(self) -> int:
        return self.operands["down"].out_in(self.spec.down_transposed)[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.spec.hidden_sizes or (self.hidden,) * self.experts

    @property
    def before(self) -> tuple[Part, ...]:
        """The parts before the activation."""
        return ("gate", "up") if self.spec.gated else ("up",)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.before, "down")

    def operand(self, part: Part) -> StoredWeight:
        """The weight operand that holds the part."""
        return self.operands[self._source(part)]

    def transposed(self, part: Part) -> bool:
        """Whether the operand of the part has the inputs first."""
        return self.spec.down_transposed if part == "down" else self.spec.up_transposed

    def encoded(self, part: Part, expert: int) -> LazyMatrix:
        """The part of an expert as it is stored, inputs first: data [in, out], scales and zero points [groups, out]."""
        whole = self._whole(part, expert)
        return LazyMatrix(lambda table: self._half(part, whole.read(table))) if self._shares(part) else whole

    def _whole(self, part: Part, expert: int) -> LazyMatrix:
        """The expert's matrix in the operand of the part, as it is stored. The matrices of the last expert stay cached,
        because its parts are read one after another; several threads may read different experts."""
        source, last = self._source(part), self._last
        if last[0] != expert:
            last = self._last = (expert, {})
        matrices = last[1]
        if source not in matrices:
            matrices[source] = self.operands[source].encoded(expert, self.transposed(part))
        return matrices[source]

    def own(self, part: Part, expert: int) -> LazyMatrix:
        """:meth:`encoded` with stored zeros in the place of hidden units that the expert does not have.

        Raises UnsupportedError if units are absent and the format has minima, and thus no zero.
        """
        matrix = self.encoded(part, expert)
        if not self.spec.hidden_sizes:
            return matrix
        form = self.operand(part).run_of(expert).format
        if form.minima:
            raise UnsupportedError(
                f"{part} is stored as {form}, which has no zero; expected every expert to have all units"
            )
        size = self.sizes[expert]
        absent = (slice(size, None), slice(None)) if part == "down" else (slice(None), slice(size, None))

        def read(table: Table) -> Array | None:
            if table != "data":
                return matrix.read(table)
            data, zeros = np.array(matrix.data), matrix.zero_point
            data[absent] = 0
            if zeros is not None:
                data[absent] = per_element(zeros, form, len(data), 0)[absent]
            return data

        return LazyMatrix(read)

    def decoded(self, part: Part, expert: int) -> Array:
        """The numbers [in, out] in float32, zeros for hidden units that the expert does not have. One axis is
        contiguous, unlike in halves of interleaved weights, which numpy multiplies slowly.

        Raises UnsupportedError for float64, which no kernel computes in.
        """
        numbers = decode(self.own(part, expert), self.operand(part).run_of(expert).kernel_format, 0)
        return numbers if numbers.itemsize in numbers.strides else np.ascontiguousarray(numbers)

    def bias(self, part: Part) -> Array | None:
        """The biases [E, out] of a part; None where there are none.

        Raises UnsupportedError for a bias that is computed when the model runs.
        """
        name = f"{self._source(part)}_bias"
        value = self._inputs[name]
        if value is None:
            return None
        if name not in self._biases:
            data = constant(value)
            if data is None:
                raise UnsupportedError(f"{name} is computed at run time; expected a constant, which can be packed")
            self._biases[name] = data.numpy()
        return self._half(part, self._biases[name]) if self._shares(part) else self._biases[name]

    def _shares(self, part: Part) -> bool:
        """Whether the operand of the part holds another part, too."""
        return self.spec.fused and part != "down"

    def _source(self, part: Part) -> str:
        return "up" if self._shares(part) else part

    def _half(self, part: Part, both: Array | None) -> Any:
        """The part's half of an array that holds gate and up along its last axis."""
        return None if both is None else self.spec.gate_and_up(both)[part == "up"]


def readable_weights(node: ir.Node) -> ExpertWeights | str:
    """The weights of a ``moec.Experts`` or ``moec.MoE`` node; the reason where they, or biases, are no constants."""
    try:
        weights = ExpertWeights(node)
        for part in weights.parts:
            weights.bias(part)
    except UnsupportedError as error:
        return str(error)
    return weights
