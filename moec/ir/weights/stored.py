"""The storage formats of weights in a graph: standard ONNX nodes, read and made only here.

The weight operand of a moec node is one of

- a constant: stored as it is;
- ``Cast(constant)`` of float16 or bfloat16;
- ``DequantizeLinear <axis, block_size> (constant, scales[, zero points])``; ``axis`` is that of the inputs (``in`` of
  [E,out,in]), ``block_size`` the group. Elements and scales are those of :mod:`moec.ir.weights.format`. ONNX has no
  types of 3, 5 and 6 bits: an attribute ``width`` gives the number of bits where the type has more. int8 of width 4 is
  one of the 16 numbers of iq4;
- ``Sub (DequantizeLinear(numbers, scales), Gather <axis> (minima, groups))`` of unsigned numbers: a minimum for every
  group, of the type of the scales; ``groups`` [in] (int64) is the group of each input, in ascending order;
- the same with scales, and minima, that are ``DequantizeLinear (codes, factors)`` (:mod:`moec.ir.weights.levels`);
- ``Concat <axis = 0>`` of these: runs of consecutive experts, each with a format of its own.

:func:`moec.ir.weight_operands.decoding_nodes` finds these nodes; passes that compute constants leave them alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.ir.weights.encode import Table, decode
from moec.ir.weights.format import ELEMENTS, FormatName, WeightFormat, name_of
from moec.ir.weights.lazy import LazyMatrix
from moec.ir.weights.levels import LEVELS, Levels, TableOfGroups
from moec.ir.weights.stacks import expert_data

Array = np.ndarray[Any, Any]

WIDTH = "width"


@dataclasses.dataclass(frozen=True)
class WeightRun:
    """Consecutive experts stored in one format. The matrix of a ``Linear``, which has no experts, is a run of one
    expert.

    ``axis`` is that of the inputs in the matrix of one expert; None if the format has no groups, so that the graph does
    not say. ``scale`` and ``minimum`` are computed if they have two levels (:meth:`levels`); all other values are
    constant.
    """

    first: int
    count: int
    format: WeightFormat
    data: ir.Value
    scale: ir.Value | None = None
    zero_point: ir.Value | None = None
    axis: int | None = None
    minimum: ir.Value | None = None
    scale_levels: Levels | None = None
    minimum_levels: Levels | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of one expert's matrix."""
        tensor = constant(self.data)
        assert tensor is not None
        rows, columns = (int(size) for size in tensor.shape.numpy()[-2:])
        return rows, columns

    @property
    def kernel_format(self) -> WeightFormat:
        """The format, for kernels. Raises UnsupportedError for float64, which no kernel computes in."""
        if self.format.name == "float64":
            raise UnsupportedError("weights are float64; expected float32, float16, bfloat16 or a quantised format")
        return self.format

    def encoded(self, expert: int) -> LazyMatrix:
        """The stored matrix of one expert (its number among all experts), without reading any other."""

        def read(table: Table) -> Array | None:
            for whole, parts in LEVELS.items():
                levels = self.levels(whole)
                if levels is not None and table in (whole, *parts):
                    codes, factors = (self._part(part, expert) for part in (levels.codes, levels.factors))
                    return levels.multiplied(codes, factors) if table == whole else (codes, factors)[parts.index(table)]
            value: ir.Value | None = getattr(self, table, None)
            return None if value is None else self._part(value, expert)

        return LazyMatrix(read)

    def levels(self, table: Table) -> Levels | None:
        """The two levels of scales or minima; None for a table that is constant or absent."""
        return {"scale": self.scale_levels, "minimum": self.minimum_levels}.get(table)

    def decoded(self, expert: int) -> Array:
        """The matrix of one expert in float32 (float64 where it is stored so)."""
        return decode(self.encoded(expert), self.format, -1 if self.axis is None else self.axis)

    def _part(self, value: ir.Value, expert: int) -> Array:
        tensor = constant(value)
        assert tensor is not None
        return tensor.numpy() if len(tensor.shape) == 2 else expert_data(value, expert - self.first)


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A weight operand whose experts may differ in format."""

    name: str
    runs: tuple[WeightRun, ...]

    @staticmethod
    def of(value: ir.Value) -> StoredWeight:
        """Read the formats of a weight operand. Raises UnsupportedError like :func:`weight_runs`."""
        return StoredWeight(str(value.name), tuple(weight_runs(value)))

    @property
    def experts(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def formats(self) -> list[WeightFormat]:
        """The format of each expert."""
        return [run.format for run in self.runs for _ in range(run.count)]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of one expert's matrix, as the graph has it."""
        return self.runs[0].shape

    def out_in(self, transposed: bool) -> tuple[int, int]:
        """Numbers of outputs and inputs of the matrix; ``transposed``: inputs are its rows."""
        rows, columns = self.shape
        return (columns, rows) if transposed else (rows, columns)

    def run_of(self, expert: int) -> WeightRun:
        """The run of experts that this one belongs to."""
        return next(run for run in self.runs if expert < run.first + run.count)

    def encoded(self, expert: int, transposed: bool) -> LazyMatrix:
        """The stored matrix of one expert, inputs first: data [in, out], scales, zero points, minima [groups, out]."""
        matrix = self.run_of(expert).encoded(expert)
        return matrix if transposed else matrix.mapped(np.transpose)

    def decoded(self, expert: int, transposed: bool) -> np.ndarray:
        """The numbers of one expert, inputs first, in float32.

        Raises UnsupportedError for float64, which no kernel computes in.
        """
        return decode(self.encoded(expert, transposed), self.run_of(expert).kernel_format, 0)

    def has_finite_floats(self) -> bool:
        """Whether all weights that are stored as floats are finite; reads all of them."""
        for run in self.runs:
            for expert in range(run.first, run.first + run.count) if not run.format.quantized else ():
                if not np.isfinite(run.encoded(expert).data).all():
                    return False
                release_pages()
        return True


def decoding_node(
    form: WeightFormat,
    data: ir.Value,
    scale: ir.Value | None,
    zero_point: ir.Value | None,
    axis: int,
    dtype: ir.DataType,
) -> ir.Node:
    """A node that decodes a weight stored in ``form`` to ``dtype``; ``axis`` is that of the inputs in ``data``."""
    if not form.quantized:
        node = ir.node("Cast", [data], {"to": int(dtype)})
    else:
        assert data.shape is not None
        operands = [data, scale] if zero_point is None else [data, scale, zero_point]
        size = int(data.shape.numpy()[axis])
        attributes = {"axis": axis % data.shape.rank(), "block_size": min(form.group or size, size)}
        if form.elements.width is not None:
            attributes[WIDTH] = form.elements.width
        node = ir.node("DequantizeLinear", operands, {**attributes, "output_dtype": int(dtype)})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, data.shape
    return node


def weight_runs(value: ir.Value) -> list[WeightRun]:
    """The runs of experts of the weight operand ``value``, each in one format.

    Raises UnsupportedError for an operand that is not computed in one of the ways that the module lists.
    """
    runs: list[WeightRun] = []
    for part in _parts(value):
        first = runs[-1].first + runs[-1].count if runs else 0
        runs.append(_run(part, first))
    return runs


def minima_of(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The ``DequantizeLinear`` and the ``Gather`` of :func:`less_minima`, where the node is its ``Sub``."""
    decoding, gathered = (None if value is None else value.producer() for value in node.inputs)
    if decoding is None or gathered is None or decoding.domain or gathered.domain:
        return None
    return (decoding, gathered) if (decoding.op_type, gathered.op_type) == ("DequantizeLinear", "Gather") else None


def _is(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    return node is not None and node.domain == "" and node.op_type in op_types


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The data of an initializer; None for an input, even one with a default."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def widens_halves(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether the node converts a constant that is stored as floats of 16 bits to float32."""
    if not _is(node, "Cast") or node.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return False
    stored = constant(node.inputs[0])
    return stored is not None and stored.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _parts(value: ir.Value) -> Iterator[ir.Value]:
    node = value.producer()
    if not _is(node, "Concat"):
        yield value
        return
    axis = node.attributes["axis"].as_int()
    if axis != 0:
        raise UnsupportedError(f"weight {value.name}: Concat joins axis {axis}; expected runs of experts along axis 0")
    for part in node.inputs:
        assert part is not None
        yield from _parts(part)


def _run(value: ir.Value, first: int) -> WeightRun:
    node = value.producer()
    if _is(node, "DequantizeLinear"):
        return _quantized_run(value, node, first)
    if _is(node, "Sub") and (nodes := minima_of(node)) is not None:
        return _run_with_minima(value, *nodes, first)
    data = node.inputs[0] if _is(node, "Cast") else value
    tensor = constant(data)
    if data is None or tensor is None:
        origin = "an input of the model" if node is None else f"computed by {node.op_type}"
        raise UnsupportedError(
            f"weight {value.name}: is {origin}; expected a constant, or a Cast, DequantizeLinear or Concat of constants"
        )
    name = name_of(tensor.dtype)
    if name is None or ELEMENTS[name].scales:
        raise UnsupportedError(f"weight {value.name}: is {tensor.dtype}; expected a float or a quantised format")
    return WeightRun(first, _count(tensor), WeightFormat(name), data)


def _quantized_run(value: ir.Value, node: ir.Node, first: int, has_minima: bool = False) -> WeightRun:
    data, scale, zero_point = (*node.inputs, None)[:3]
    tensor, scales = constant(data), TableOfGroups.of(scale)
    if data is None or tensor is None or scales is None or (zero_point is not None and constant(zero_point) is None):
        raise UnsupportedError(f"weight {value.name}: DequantizeLinear has an operand that is not constant")
    rank = len(tensor.shape)
    axis, block = (node.attributes[key].as_int() if key in node.attributes else 0 for key in ("axis", "block_size"))
    axis += rank if axis < 0 else 0
    if rank not in (2, 3) or axis not in (rank - 1, rank - 2) or block <= 0 or len(scales.shape) != rank:
        raise UnsupportedError(
            f"weight {value.name}: {list(tensor.shape)} has scales {list(scales.shape)}, axis {axis} and block_size "
            f"{block}; expected blocks along the inputs of a matrix, or of one matrix per expert"
        )
    size = int(tensor.shape.numpy()[axis])
    width = node.attributes[WIDTH].as_int() if WIDTH in node.attributes else None
    codes = scales.dtype if scales.levels is None else scales.levels.codes.dtype
    scale_type = codes if codes == ir.DataType.FLOAT8E4M3FN else scales.dtype
    name = name_of(tensor.dtype, width, scale_type)
    form = _format(value, name, (tensor.dtype, scale_type), block, size, zero_point is not None, has_minima)
    if form.elements.has_factors:
        _check_one_factor(value, scales, axis - rank)
    elif scales.levels is not None:
        form = _with_levels(value, form, scales.levels, axis - rank)
    return WeightRun(
        first, _count(tensor), form, data, scale, zero_point, axis - (rank - 2), scale_levels=scales.levels
    )


def _check_one_factor(value: ir.Value, scales: TableOfGroups, axis: int) -> None:
    levels = scales.levels
    if levels is None or levels.axis != axis or levels.span < scales.shape[axis]:
        raise UnsupportedError(
            f"weight {value.name}: has scales of float8e4m3fn that are not multiplied, or by several factors; expected "
            "a DequantizeLinear of them with one factor for all inputs of an output"
        )


def _with_levels(value: ir.Value, form: WeightFormat, levels: Levels, axis: int) -> WeightFormat:
    if not form.group or not form.elements.whole or levels.axis != axis:
        raise UnsupportedError(
            f"weight {value.name}: {form} has scales that are quantised along axis {levels.axis}; expected "
            "whole numbers in groups of inputs, and factors for several of these"
        )
    return dataclasses.replace(form, super_group=form.group * levels.span)


def _run_with_minima(value: ir.Value, decoding: ir.Node, gather: ir.Node, first: int) -> WeightRun:
    minimum = gather.inputs[0]
    cast = None if minimum is None else minimum.producer()
    minimum = cast.inputs[0] if _is(cast, "Cast") else minimum
    minima, groups = TableOfGroups.of(minimum), constant(gather.inputs[1])
    if minimum is None or minima is None or groups is None or len(decoding.inputs) != 2:
        raise UnsupportedError(f"weight {value.name}: has minima and zero points, or minima that are computed")
    run = _quantized_run(value, decoding, first, has_minima=True)
    scales = TableOfGroups.of(run.scale)
    assert scales is not None and run.axis is not None
    size, axis = run.shape[run.axis], len(scales.shape) - 2 + run.axis % 2
    if (
        minima.kind != scales.kind
        or gather.attributes.get_int("axis", 0) % len(scales.shape) != axis
        or not np.array_equal(groups.numpy(), np.arange(size) // run.format.group)
    ):
        raise UnsupportedError(
            f"weight {value.name}: has minima {minima.dtype}{list(minima.shape)} and scales "
            f"{scales.dtype}{list(scales.shape)}; expected one for each scale, of its group and made in the same way"
        )
    return dataclasses.replace(run, minimum=minimum, minimum_levels=minima.levels)


def _format(
    value: ir.Value,
    name: FormatName | None,
    types: tuple[ir.DataType, ir.DataType],
    block: int,
    size: int,
    has_zero_points: bool,
    has_minima: bool,
) -> WeightFormat:
    data_type, scale_type = types
    if name is None or not ELEMENTS[name].takes_scales(scale_type):
        raise UnsupportedError(f"weight {value.name}: {data_type} elements with {scale_type} scales are not supported")
    elements = ELEMENTS[name]
    if (has_zero_points or has_minima) != (data_type == elements.unsigned):
        zeros = "with" if has_zero_points else "without"
        raise UnsupportedError(
            f"weight {value.name}: {data_type} {zeros} zero points; expected signed elements without, or unsigned with"
        )
    if not elements.groups:
        return WeightFormat(name, 0 if block >= size and not has_minima else block, has_zero_points, has_minima)
    group = next(
        (
            allowed
            for allowed in sorted((*elements.groups, *elements.imported))
            if min(block, size) == min(allowed, size)
        ),
        None,
    )
    if group is None:
        expected = " or ".join(map(str, elements.groups))
        raise UnsupportedError(f"weight {value.name}: {name} in groups of {block}; expected {expected}")
    return WeightFormat(name, group, has_zero_points, has_minima)


def _count(tensor: ir.TensorProtocol) -> int:
    return int(tensor.shape.numpy()[0]) if len(tensor.shape) == 3 else 1
