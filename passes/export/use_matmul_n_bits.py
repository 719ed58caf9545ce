"""Dense products with quantised weights as onnxruntime's operator MatMulNBits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.contrib_quantized import INT8_LEVEL
from moec.ir.dialect import ExpertsSpec, LinearSpec
from moec.ir.weights.encode import Table
from moec.ir.weights.stored import StoredWeight
from moec.passes.export.packed_experts import LEAST_BLOCK, bits_of, pack
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.expert_body import activated
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
_LARGEST_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class UseMatMulNBits:
    """Writes ``moec.Linear`` with quantised weights as onnxruntime's ``com.microsoft.MatMulNBits``.

    1. Weights of 2, 4 and 8 bits are packed in bytes, [N,blocks,bytes], with a scale for each block of a row; those of
       3 bits take 4, of 5 and 6 bits 8. Zero points stay. A row with one scale has blocks of the size, from 16 to 256,
       with the fewest bytes.
    2. ``accuracy_level`` 4 lets the kernel round its rows to 8 bits where the node does so in the same groups.
    3. Weights that the operator does not have stay, and a note says why: formats with minima, of floats, groups that
       are no power of two or smaller than 16.

    ::

        (float[T,32] x) => (float[T,2] y) <int4[2,32] w, float[2,2] scale> {
           d = DequantizeLinear <axis = 1, block_size = 16, output_dtype = 1> (w, scale)
           y = moec.Linear <arithmetic = "int8", activation_group = 16> (x, d)
        }
            infer-shapes,use-matmul-n-bits ->
        (float[T,32] x) => (float[T,2] y) <uint8[2,2,8] "y.data", float[2,2] "y.scales"> {
           y = com.microsoft.MatMulNBits <K = 32, N = 2, accuracy_level = 4, bits = 4, block_size = 16>
              (x, "y.data", "y.scales")
        }
    """

    name: ClassVar[str] = "use-matmul-n-bits"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph if dialect.is_moec(node, "Linear")]:
            matrix = _packed(node)
            if matrix is None or isinstance(matrix, str):
                if matrix is not None:
                    report.note(self.name, node_name(node), matrix)
                continue
            operands = [value for value in node.inputs if value is not None]
            replace_node(node, [_spelled(Writer(node, value_names(model.graph)), matrix)])
            for value in dict.fromkeys(operands):
                remove_unused(model.graph, value)
            changed = True
        return changed


@dataclasses.dataclass(frozen=True)
class _Packed:
    """A weight [N,K] in blocks."""

    stored: StoredWeight
    transposed: bool
    bits: int
    block: int

    @property
    def size(self) -> tuple[int, int]:
        """N and K."""
        return self.stored.out_in(self.transposed)

    @property
    def blocks(self) -> int:
        return -(-self.size[1] // self.block)

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)

    def table(self, name: Table) -> Array:
        """The table [N,inputs] or [N,groups]."""
        array = self.stored.encoded(0, self.transposed).read(name)
        assert array is not None
        return array.T

    def data(self) -> Array:
        form, (N, K) = self.stored.runs[0].format, self.size
        zero = 0 if form.zero_points else self.middle
        numbers = np.full((N, self.blocks * self.block), zero, np.uint8)
        numbers[:, :K] = self.table("data").astype(np.int16) + zero
        return pack(numbers, self.bits).reshape(N, self.blocks, -1)

    def scales(self) -> Array:
        return self._by_block(self.table("scale").astype(np.float32))

    def zeros(self) -> Array:
        return pack(self._by_block(self.table("zero_point").astype(np.uint8)), self.bits)

    def _by_block(self, table: Array) -> Array:
        return np.repeat(table, self.blocks, axis=1) if table.shape[1] == 1 else table


def _packed(node: ir.Node) -> _Packed | str | None:
    """The weight of a node; a reason where the operator does not have it, None for one of plain floats."""
    x, weight = dialect.inputs_of(node)["x"], dialect.inputs_of(node)["weight"]
    assert x is not None and weight is not None
    try:
        stored = StoredWeight.of(weight)
    except UnsupportedError:
        return None
    form, transposed = stored.runs[0].format, dialect.spec_of(node, LinearSpec).transposed
    if not form.quantized:
        return None
    if not form.elements.whole or form.minima:
        return f"its weight is stored as {form}, which MatMulNBits does not have"
    bits, K = bits_of(form), stored.out_in(transposed)[1]
    if not form.group or form.group >= K:
        return _Packed(stored, transposed, bits, _cheapest_block(K, bits))
    if form.group < LEAST_BLOCK or form.group & (form.group - 1):
        return f"its weight is in groups of {form.group} inputs; MatMulNBits has powers of two from {LEAST_BLOCK}"
    return _Packed(stored, transposed, bits, form.group)


def _cheapest_block(length: int, bits: int) -> int:
    """The size of blocks with the fewest bytes for a row that has one scale."""
    sizes = [1 << power for power in range(4, 9)]
    assert sizes[0] == LEAST_BLOCK and sizes[-1] == _LARGEST_BLOCK
    return min(sizes, key=lambda block: -(-length // block) * (block * bits // 8 + 4))


def _spelled(write: Writer, matrix: _Packed) -> ir.Value:
    inputs, spec, (N, K) = dialect.inputs_of(write.node), dialect.spec_of(write.node, LinearSpec), matrix.size
    x, bias = inputs["x"], inputs["bias"]
    assert x is not None
    result = x.dtype or ir.DataType.FLOAT
    wide = x if result == ir.DataType.FLOAT else write.add("Cast", x, to=ir.DataType.FLOAT, label="wide")
    blocks, form = matrix.blocks, matrix.stored.runs[0].format
    bytes_of_block, uint8 = matrix.block * matrix.bits // 8, ir.DataType.UINT8

    def table(label: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], Array]) -> ir.Value:
        return write.weight(
            ir.LazyTensor(lambda: ir.Tensor(make().astype(dtype.numpy())), dtype=dtype, shape=ir.Shape(shape)), label
        )

    data = table("data", uint8, (N, blocks, bytes_of_block), matrix.data)
    narrow = matrix.stored.runs[0].scale
    is_narrow = narrow is not None and narrow.dtype == ir.DataType.FLOAT16
    scales = table("scales", ir.DataType.FLOAT16 if is_narrow else ir.DataType.FLOAT, (N, blocks), matrix.scales)
    if is_narrow:  # onnxruntime computes this once, when it loads the model
        scales = write.add("Cast", scales, to=ir.DataType.FLOAT, label="scales")
    operands: list[ir.Value | None] = [wide, data, scales]
    if form.zero_points:
        operands.append(table("zeros", uint8, (N, -(-blocks * matrix.bits // 8)), matrix.zeros))
    named = {"K": K, "N": N, "bits": matrix.bits, "block_size": matrix.block}
    if spec.arithmetic == "int8" and spec.activation_group == matrix.block:
        named["accuracy_level"] = INT8_LEVEL
    y = write.insert(ir.node("MatMulNBits", operands, named, domain="com.microsoft"), "product")
    if bias is not None:
        wide_bias = bias if bias.dtype == ir.DataType.FLOAT else write.add("Cast", bias, to=ir.DataType.FLOAT)
        y = write.add("Add", y, wide_bias, label="biased")
    y = activated(write, ExpertsSpec(activation=spec.activation, gate_layout="none"), None, y, ir.DataType.FLOAT)
    return y if result == ir.DataType.FLOAT else write.add("Cast", y, to=result, label="narrow")
