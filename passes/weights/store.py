"""Storing the weights of a moec node in other formats, expert by expert, without holding more than one expert."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import INPUTS, ProductSpec
from moec.ir.graphs import add_constant
from moec.ir.minima import less_minima
from moec.ir.weight_operands import input_axis, weight_inputs
from moec.ir.weights.encode import Encoded, Table, encode, group_count, scales_of
from moec.ir.weights.format import WeightFormat, name_of
from moec.ir.weights.levels import LEVELS, product_of_levels
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import StoredWeight, WeightRun, decoding_node
from moec.passes.graph.edits import fresh_name, remove_unused
from moec.passes.weights.kept import KeptExperts

Array = np.ndarray[Any, Any]
_TABLES: tuple[Table, ...] = get_args(Table)
_ADDED = re.compile(r"(_decoded(_\d+)?)?(_stored(_\d+)?)?$")

Encoder = Callable[[Array, WeightFormat, int, int], Encoded]
"""Encoder of a matrix, as the graph has it, in a quantised format: from the matrix, the format, the axis of the inputs
and the expert. Raises ValueError like :func:`moec.ir.weights.encode.encode`."""


def store(
    node: ir.Node, name: str, formats: Sequence[WeightFormat], encoder: Encoder | None = None, at_once: int = 0
) -> bool:
    """Store expert e of the weight operand ``name`` in format ``wanted[e]``; return whether that changes anything.

    The new constants compute themselves when they are read, and are rounded to nearest; those in a quantised format
    that an ``encoder`` makes are made now, ``at_once`` experts side by side (0: as many as there are cores). A number
    that its format cannot hold raises MoecError when it is made.
    """
    value = weight_inputs(node)[name]
    weight = StoredWeight.of(value)
    if weight.formats == list(formats):
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    segments = [_Segment(node, name, segment, form) for segment, form in _segments(weight, formats)]
    if encoder is not None:
        for segment in segments:
            segment.make(encoder, at_once)
    _put(node, name, [segment.add_to(graph) for segment in segments])
    return True


def scale_experts(node: ir.Node, name: str, factors: Sequence[float]) -> None:
    """Multiply the weight operand ``name`` of expert e by ``factors[e]``: numbers stored as floats, and of others the
    scales, each rounded to the type that it has. One expert is computed at a time, when it is read; then a number
    beyond the range of its type raises MoecError. Exponents (of mxfp4) cannot be scaled."""
    weight, graph = StoredWeight.of(weight_inputs(node)[name]), node.graph
    assert isinstance(graph, ir.Graph)
    kept = _segments(weight, weight.formats)
    segments = [_Segment(node, name, segment, form, factors) for segment, form in kept]
    _put(node, name, [segment.add_to(graph) for segment in segments])


def _put(node: ir.Node, name: str, parts: Sequence[ir.Value]) -> None:
    """Let runs of consecutive experts be the weight operand ``name``."""
    graph, value, joined = node.graph, weight_inputs(node)[name], parts[0]
    assert isinstance(graph, ir.Graph)
    if len(parts) > 1:
        joint = ir.node("Concat", parts, {"axis": 0})
        joined = joint.outputs[0]
        joined.name = fresh_name(graph, f"{_base_name(value)}_stored")
        joined.type, joined.shape = value.type, value.shape
        graph.insert_before(node, joint)
    node.replace_input_with(INPUTS[node.op_type].index(name), joined)
    remove_unused(graph, value)


def change_numbers(node: ir.Node, name: str, change: Callable[[Array, int], Array]) -> None:
    """Replace the numbers of a weight operand of floats by the results of ``change`` on them and the expert's number,
    in the same type. Each expert is computed when it is read."""
    graph, value = node.graph, weight_inputs(node)[name]
    assert isinstance(graph, ir.Graph) and value.shape is not None and value.dtype is not None
    weight = StoredWeight.of(value)

    def load(index: int) -> Array:
        return change(weight.run_of(index).encoded(index).data, index)

    changed = fresh_name(graph, f"{_base_name(value)}_changed")
    shape = tuple(int(size) for size in value.shape.numpy())
    node.replace_input_with(
        INPUTS[node.op_type].index(name), add_constant(graph, _lazy(changed, value.dtype, shape, load), changed)
    )
    remove_unused(graph, value)


def set_arithmetic(node: ir.Node, spec: ProductSpec) -> None:
    """Say on a moec node how its products are computed."""
    for key, default in (("arithmetic", "float32"), ("activation_group", 0)):
        node.attributes.pop(key, None)
        if getattr(spec, key) != default:
            node.attributes[key] = ir.convenience.convert_attribute(key, getattr(spec, key))


def _base_name(value: ir.Value) -> str:
    """The name of a weight without suffixes that earlier passes added here."""
    return _ADDED.sub("", str(value.name))


def _segments(
    weight: StoredWeight, formats: Sequence[WeightFormat]
) -> Iterator[tuple[list[tuple[int, WeightRun]], WeightFormat]]:
    """Consecutive experts, each with the run it is in now, that get one format together. Experts that keep theirs stay
    with their run, whose scales may be of another type than those made here."""
    experts = [(expert, weight.run_of(expert)) for expert in range(weight.experts)]

    def kind(item: tuple[int, WeightRun]) -> tuple[WeightFormat, int | None]:
        expert, run = item
        return formats[expert], run.first if run.format == formats[expert] else None

    for (form, _), segment in itertools.groupby(experts, kind):
        yield list(segment), form


class _Segment:
    """Experts of one weight that are stored together. ``factors``: a factor for each of all experts, if it keeps its
    format."""

    def __init__(
        self,
        node: ir.Node,
        name: str,
        experts: list[tuple[int, WeightRun]],
        form: WeightFormat,
        factors: Sequence[float] | None = None,
    ) -> None:
        self._node, self._name, self._experts, self._form, self._factors = node, name, experts, form, factors
        self._where = f"node {node_name(node)}: weight {name}"  # the node may be gone when the data is read
        value = weight_inputs(node)[name]
        assert value.shape is not None and value.dtype is not None
        self._wish, self._dtype, self._rank = _base_name(value), value.dtype, value.shape.rank()
        self._axis = input_axis(node, name)
        first = experts[0][1]
        self._kept = first if first.format == form else None
        self._waiting: dict[tuple[int, str], Array] = {}
        self._made: KeptExperts | None = None

    def make(self, encoder: Encoder, at_once: int) -> None:
        """Encode all experts now, if the segment is one that becomes quantised."""
        if self._kept is not None or not self._form.quantized:
            return

        def encoded(index: int) -> Encoded:
            expert, run = self._experts[index]
            with self._of(expert):
                return encoder(run.decoded(expert), self._form, self._axis, expert)

        shape = self._experts[0][1].shape
        needed = _bytes_at_work(*shape, shape[self._axis])
        self._made = KeptExperts(len(self._experts), encoded, needed, at_once)

    def add_to(self, graph: ir.Graph) -> ir.Value:
        """Add the constants, and the node that decodes them where their type is not that of the operand."""
        data = self._constant(graph, "", "data", self._data_shape(), self._form.data_type)
        if self._form.data_type == self._dtype:
            return data
        scale = zero_point = None
        if self._form.quantized:
            scale = self._floats(graph, "scale")
            if self._form.zero_points:
                zero_point = self._constant(
                    graph, "_zero_point", "zero_point", self._scale_shape(), self._form.data_type
                )
        decoding = decoding_node(self._form, data, scale, zero_point, self._axis, self._dtype)
        decoding.outputs[0].name = fresh_name(graph, f"{self._wish}_decoded")
        graph.insert_before(self._node, decoding)
        if not self._form.minima:
            return decoding.outputs[0]
        minimum = self._floats(graph, "minimum")
        return less_minima(graph, self._node, decoding.outputs[0], minimum, self._axis, self._form.group)

    def _floats(self, graph: ir.Graph, table: Literal["scale", "minimum"]) -> ir.Value:
        """Scales or minima, of the type and with the levels that they have where the format is kept."""
        shape, kept = self._scale_shape(), None if self._kept is None else getattr(self._kept, table)
        if not self._form.two_levels:
            scale_type = self._form.scale_type if kept is None else kept.dtype
            return self._constant(graph, f"_{table}", table, shape, scale_type)
        levels = None if self._kept is None else self._kept.levels(table)
        types = self._form.level_types
        code_type, factor_type = types if levels is None else (levels.codes.dtype, levels.factors.dtype)
        few, span = list(shape), self._form.span(self._data_shape()[self._axis])
        few[self._axis] = -(-few[self._axis] // span)
        code, factor = LEVELS[table]
        assert code_type is not None and factor_type is not None
        codes = self._constant(graph, f"_{code}", code, shape, code_type)
        factors = self._constant(graph, f"_{factor}", factor, tuple(few), factor_type)
        return product_of_levels(graph, self._node, codes, factors, self._axis, span)

    def _data_shape(self) -> tuple[int, ...]:
        tensor = ir.convenience.get_const_tensor(self._experts[0][1].data)
        assert tensor is not None
        sizes = tuple(int(size) for size in tensor.shape.numpy())
        return (len(self._experts), *sizes[1:]) if self._rank == 3 else sizes

    def _scale_shape(self) -> tuple[int, ...]:
        shape = list(self._data_shape())
        shape[self._axis] = group_count(shape[self._axis], self._form)
        return tuple(shape)

    def _constant(
        self, graph: ir.Graph, suffix: str, table: Table, shape: tuple[int, ...], dtype: ir.DataType
    ) -> ir.Value:
        name = fresh_name(graph, f"{self._wish}_{self._form.name}{suffix}")
        return add_constant(graph, _lazy(name, dtype, shape, lambda index: self._load(index, table)), name)

    def _load(self, index: int, table: Table) -> Array:
        """One table of one expert."""
        if self._made is not None:
            return self._made.read(index, table)
        expert, run = self._experts[index]
        if self._kept is not None:
            return self._scaled(_needed(run.encoded(expert).read(table)), expert, table)
        with self._of(expert):
            return self._encoded(index, lambda: run.decoded(expert), table)

    def _scaled(self, array: Array, expert: int, table: Table) -> Array:
        """A table of an expert that keeps its format."""
        if self._factors is None or table not in self._floats_of_format():
            return array
        name = name_of(ir.DataType.from_numpy(array.dtype))
        assert name is not None
        with self._of(expert):
            return encode(array.astype(np.float64) * self._factors[expert], WeightFormat(name)).data

    def _floats_of_format(self) -> tuple[Table, ...]:
        """The tables by which numbers grow that keep their format."""
        if not self._form.quantized:
            return ("data",)
        return ("scale_factor", "minimum_factor") if self._form.two_levels else ("scale", "minimum")

    @contextlib.contextmanager
    def _of(self, expert: int) -> Iterator[None]:
        """Context that names the weight and the expert in errors of an encoder."""
        try:
            yield
        except ValueError as error:
            of = f" of expert {expert}" if self._rank == 3 else ""
            raise MoecError(f"{self._where}{of}: {error}") from None

    def _encoded(self, index: int, decoded: Callable[[], Array], table: Table) -> Array:
        """Other tables that came with data that was read wait for the next who asks: writers read table by table. They
        are small; the data is not kept."""
        waiting = self._waiting.pop((index, table), None)
        if waiting is not None:
            return waiting
        if table == "data" or self._form.minima or self._form.two_levels:
            encoded = encode(decoded(), self._form, self._axis)
            products = LEVELS if self._form.two_levels else ()
            others = {name: encoded.read(name) for name in _TABLES if name not in ("data", table, *products)}
            self._waiting |= {(index, name): array for name, array in others.items() if array is not None}
            return _needed(encoded.read(table))
        scale, zero_point = scales_of(decoded(), self._form, self._axis)
        return _needed(scale if table == "scale" else zero_point)


def _bytes_at_work(rows: int, columns: int, inputs: int) -> int:
    """Return about how much memory an encoder takes for one matrix: several copies in float32, and several of the
    second moment of its inputs in float64."""
    return 6 * 4 * rows * columns + 6 * 8 * inputs * inputs


def _needed(array: Array | None) -> Array:
    assert array is not None
    return array


def _lazy(name: str, dtype: ir.DataType, shape: tuple[int, ...], load: Callable[[int], Array]) -> ir.LazyTensor:
    if len(shape) == 3:
        return ExpertStack(name, dtype, shape, load)
    return ir.LazyTensor(
        lambda: ir.Tensor(load(0), dtype=dtype, name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
