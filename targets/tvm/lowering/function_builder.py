"""Builder of the Relax function for a model: its bindings, weights, kernels and calls of kernels."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax, te, tirx

from moec.common.budgets import SIZE_OPERATORS, Budget
from moec.common.errors import UnsupportedError
from moec.common.names import node_name, operator_name
from moec.common.specs import StreamedExpertsSpec, StreamedWeight
from moec.targets.base import KernelRecord, Loader, Weight
from moec.targets.tvm.kernels.te_kernels import OPAQUE, Requirement, prim_func
from moec.targets.tvm.lowering.lengths_in_memory import LengthsInMemory
from moec.targets.tvm.phases.bound_storage import bounded
from moec.targets.tvm.phases.rename_kernels import EXPORTED
from moec.targets.tvm.sizes.c_expressions import sizes_of
from moec.targets.tvm.sizes.conditions import CheckedConditions
from moec.targets.tvm.sizes.shapes import reshaped
from moec.targets.tvm.sizes.symbolic import Sizes, StaticValue

_BEYOND_MEMORY = 1 << 62


def identifier(name: str | None) -> str:
    return re.sub(r"\W", "_", name or "value") or "value"


def _is_view(expression: relax.Expr) -> TypeGuard[relax.Call]:
    """Whether the result shares the memory of the first argument."""
    return isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.reshape")


_Streamed = tuple[int, dict[relax.Var, Sequence[int]], tuple[float, ...], int | None]
"""A layer of streamed experts: what :meth:`FunctionBuilder.stream_experts` was told."""


class FunctionBuilder:
    """Relax ``main`` under construction: variables, new sizes, weights (parameters of ``main``), and kernels."""

    def __init__(self) -> None:
        self.sizes = Sizes()
        self._builder = relax.BlockBuilder()
        self._conditions = CheckedConditions()
        self._computed: set[relax.Var] = set()
        """Variables whose memory is a kernel's own result, not an input or a constant."""
        self._weights: dict[str, tuple[relax.Var, Weight]] = {}
        self._kernels: dict[str, KernelRecord] = {}
        self._exported: dict[tirx.PrimFunc, str] = {}
        self._node: ir.Node | None = None
        """The node being converted; variables are made for it."""
        self._nodes: dict[str, ir.Node] = {}
        self._streamed: dict[str, _Streamed | None] = {}
        self._replaceable: set[str] = set()
        self._read_by_rows: set[str] = set()
        self._read_whole: set[str] = set()
        self.beyond: dict[Budget, list[str]] = {}
        """The names of nodes that needed more than a budget allows."""
        self.lengths = LengthsInMemory()
        self._of_one_page: dict[tirx.Var, Any] = {}
        """Values of the sizes of pages, which no input tells, in a plain run: there is one page then."""

    @property
    def _node_name(self) -> str:
        return "" if self._node is None else f"{node_name(self._node)} ({operator_name(self._node)})"

    def emit(self, expression: relax.Expr, name: str = "") -> relax.Var:
        if isinstance(expression, relax.Var):
            return expression
        variable = self._builder.emit(expression, name_hint=identifier(name) if name else "")
        if self._node is not None:
            self._nodes[variable.name] = self._node
        self._conditions.follow(variable, expression)
        if _is_view(expression) and expression.args[0] in self._computed:
            self._computed.add(variable)
        return variable

    def bound_to(self, tensor: relax.Expr) -> relax.Expr | None:
        """The expression that was bound to a variable; None for a parameter."""
        return self._builder.lookup_binding(tensor) if isinstance(tensor, relax.Var) else None

    def reshape(self, tensor: relax.Expr, sizes: Sequence[Any]) -> relax.Var:
        """The same elements under another shape, without a copy."""
        return self.emit(reshaped(tensor, [self.sizes.expression(size) for size in sizes]))

    def assume_shape(self, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Var:
        """A copy of the tensor with another expression for its shape, checked at run time; the tensor itself where it
        is known to have that shape.

        The check is the one that every kernel makes of its arguments. (Relax's match_cast cannot be used: passes after
        it recurse without end where a size that is already bound is matched with an expression of itself.)
        """
        sizes = [self.sizes.expression(size) for size in shape]
        if all(map(self.sizes.equal, tensor.ty.shape, sizes)):
            return self.emit(tensor)
        dtype = str(tensor.ty.dtype)
        source = te.placeholder(sizes, dtype, name="source")
        copy = te.compute(sizes, lambda *indices: source(*indices), name="checked")
        kernel, extra = prim_func([source], [copy])
        symbol = self._builder.add_func(kernel.with_attr("op_pattern", OPAQUE), "checked_shape")
        return self._call(symbol, [self.emit(tensor), *extra], [relax.TensorType(sizes, dtype)], "checked_shape")[0]

    def materialise(self, static: StaticValue, name: str = "known") -> relax.Var:
        """A static value as a tensor: a constant, or a kernel that writes the symbolic elements."""
        if static.elements.size == 0:
            sizes = [self.sizes.expression(size) for size in static.elements.shape]
            nothing = tirx.const(0, static.dtype)
            return self.compute(lambda: te.compute(sizes, lambda *_: nothing, name="empty"), [], "empty")[0]
        if static.numbers is not None:
            return self.emit(relax.const(static.numbers, static.dtype), name)
        elements = [self.sizes.expression(element).astype(static.dtype) for element in static.elements.flat]
        shape = static.elements.shape

        def write(*indices: tirx.Expr) -> tirx.Expr:
            position: Any = tirx.IntImm("int64", 0)
            for index, size in zip(indices, shape, strict=True):
                position = position * size + index
            chosen = elements[-1]
            for number in range(len(elements) - 2, -1, -1):
                chosen = tirx.if_then_else(position == number, elements[number], chosen)
            return chosen

        return self.compute(lambda: te.compute(shape, write, name="known"), [], "shape_value")[0]

    def add_weight(self, name: str, shape: Sequence[int], dtype: str, load: Loader) -> relax.Var:
        self._read_whole.add(name)
        return self._weight(name, shape, dtype, load)

    def add_row_table(self, name: str, shape: Sequence[int], dtype: str, load: Loader) -> relax.Var:
        """Like :meth:`add_weight`, for a table that is only passed to :data:`~moec.runtime.expert_calls.TABLE_ROWS`."""
        self._read_by_rows.add(name)
        return self._weight(name, shape, dtype, load)

    def row_tables(self) -> list[int]:
        """Positions of the weights of which only rows are read."""
        tables = self._read_by_rows - self._read_whole
        return [position for position, name in enumerate(self._weights) if name in tables]

    def _weight(self, name: str, shape: Sequence[int], dtype: str, load: Loader) -> relax.Var:
        shape = tuple(int(size) for size in shape)
        if name in self._weights:
            variable, weight = self._weights[name]
            if (weight.shape, weight.dtype) != (shape, dtype):
                raise ValueError(f"weight {name!r} is {weight.dtype}{weight.shape} and cannot also be {dtype}{shape}")
            return variable
        return self._add_weight(relax.TensorType(shape, dtype), Weight(name, shape, dtype, load))

    def streamed_layer(self, name: str) -> int:
        self._streamed.setdefault(name, None)
        return list(self._streamed).index(name)

    def replace_experts(self, name: str) -> int:
        self._replaceable.add(name)
        return self.streamed_layer(name)

    def stream_experts(
        self,
        name: str,
        chosen: int,
        starts: Mapping[relax.Var, Sequence[int]],
        shares: Sequence[float] = (),
        planned: int | None = None,
    ) -> int:
        layer = self.streamed_layer(name)
        before, earlier, *_ = self._streamed[name] or (0, {})
        self._streamed[name] = max(chosen, before), {**earlier, **starts}, tuple(shares), planned
        return layer

    def streamed_experts(self) -> list[StreamedExpertsSpec]:
        """The declared layers of streamed experts, without weights that several layers read: these stay in memory."""
        positions = {variable: position for position, (variable, _) in enumerate(self._weights.values())}
        declared = [(name, *layer) for name, layer in self._streamed.items() if layer is not None]
        readers = Counter(variable for _, _, starts, *_ in declared for variable in starts)
        return [
            StreamedExpertsSpec(
                name,
                chosen,
                len(next(iter(starts.values()))) - 1,
                tuple(
                    StreamedWeight(positions[variable], tuple(ends))
                    for variable, ends in starts.items()
                    if readers[variable] == 1
                ),
                shares,
                name in self._replaceable,
                planned,
            )
            for name, chosen, starts, shares, planned in declared
        ]

    def add_number(self, name: str, load: Callable[[], np.ndarray]) -> relax.Var:
        if name in self._weights:
            return self._weights[name][0]
        return self._add_weight(tvm.ir.PrimType("int64"), Weight(name, (), "int32", load))

    def _add_weight(self, kind: Any, weight: Weight) -> relax.Var:
        variable = relax.Var(identifier(weight.name), kind)
        self._weights[weight.name] = (variable, weight)
        return variable

    def compute(
        self,
        function: Callable[..., Any],
        arguments: Sequence[relax.Expr],
        name: str,
        requirements: Sequence[Requirement] = (),
    ) -> list[relax.Var]:
        """Emit a generic kernel. ``function`` takes one TE tensor per argument, may use any size of this lowering, and
        returns a TE tensor or a list of them. ``requirements``: conditions that the kernel checks when it runs."""
        placeholders = [
            te.placeholder(argument.ty.shape.values, str(argument.ty.dtype), name=f"input_{position}")
            for position, argument in enumerate(arguments)
        ]
        result = function(*placeholders)
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        needed = self._conditions.unchecked(requirements, arguments)
        kernel, extra = self.lengths.kernel(placeholders, outputs, needed, self._node_name)
        symbol = self._builder.add_func(kernel.with_attr("tirx.noalias", True), identifier(name))
        types = [relax.TensorType(output.shape, str(output.dtype)) for output in outputs]
        results = self._call(symbol, [*arguments, *extra], types, name)
        self._conditions.check(needed, results)
        return results

    def require(self, condition: Any, actual: str, expected: str) -> list[Requirement]:
        """The check of a condition on sizes that a kernel has to make; none where it holds for all sizes.

        Raises UnsupportedError where it holds for none."""
        answer = self.sizes.decide(condition)
        if answer is True:
            return []
        if answer is False:
            raise UnsupportedError(f"{actual}; expected {expected}")
        where = "" if self._node is None else f"node {node_name(self._node)!r} ({operator_name(self._node)}): "
        return [Requirement(condition, f"{where}{actual}; expected {expected}")]

    def checked(
        self, tensor: relax.Expr, requirements: Sequence[Requirement], others: Sequence[relax.Expr] = ()
    ) -> relax.Expr:
        """The tensor itself if the requirements are already checked, else a copy made by a kernel that checks them.

        A requirement counts as checked if the computation of the tensor, or of one of ``others``, depends on its
        check. ``others``: further arguments of every kernel that relies on the requirements."""
        if not (requirements := self._conditions.unchecked(requirements, [tensor, *others])):
            return tensor
        return self.compute(
            lambda source: te.compute(source.shape, lambda *at: source(*at), name="checked"),
            [tensor],
            "checked",
            requirements,
        )[0]

    def checked_sizes(self, sizes: Sequence[Any], requirements: Sequence[Requirement], name: str) -> list[Any]:
        """New symbolic sizes that the program computes, checks against the requirements, and reads at run time.

        The given sizes themselves where nothing is required."""
        if not requirements:
            return list(sizes)
        tensor = self.materialise(StaticValue.of(list(sizes)), name)
        return self.sizes_from(self.checked(tensor, requirements), [f"{name}_{axis}" for axis in range(len(sizes))])

    def size_from(self, tensor: relax.Expr, name: str) -> tirx.Var:
        """A new symbolic size that the program reads from an int64 tensor of shape [1]."""
        return self.sizes_from(tensor, [name])[0]

    def computed_size(self, size: tirx.Expr) -> tirx.Var:
        """A new symbolic size that the program computes and reads, instead of an expression too long to analyse.

        A size beyond 64 bits becomes a number of elements that no machine has memory for."""
        tensor = self.materialise(StaticValue.of([bounded(size, _BEYOND_MEMORY)]), "computed_size")
        if self._node is not None:
            self.beyond.setdefault(SIZE_OPERATORS, []).append(node_name(self._node))
        return self._read(tensor, [self.sizes.named_like(size)])[0]

    def sizes_from(self, tensor: relax.Expr, names: Sequence[str]) -> list[tirx.Var]:
        """New symbolic sizes that the program reads from an int64 tensor with as many elements."""
        return self._read(tensor, [self.sizes.variable(name) for name in names])

    def _read(self, tensor: relax.Expr, fresh: list[tirx.Var]) -> list[tirx.Var]:
        self._builder.match_cast(self.emit(relax.op.tensor_to_shape(tensor)), relax.ShapeType(fresh))
        return fresh

    def call_kernel(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        output_types: Sequence[relax.TensorType],
        record: KernelRecord,
    ) -> list[relax.Var]:
        emitted = [self.emit(argument) for argument in arguments]
        record.sizes = sizes_of(kernel, [*(argument.ty for argument in emitted), *output_types], self._of_one_page)
        self.lengths.note(emitted, output_types, self._node_name)
        symbol = self._add_recorded_kernel(kernel, record)
        return self._call(symbol, emitted, output_types, record.name)

    def call_kernel_on(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        outputs: Sequence[relax.Var],
        record: KernelRecord,
        numbers: Sequence[Any] = (),
        new: Sequence[relax.TensorType] = (),
    ) -> list[relax.Var]:
        emitted = [*map(self.emit, arguments)]
        types = [*(None for _ in numbers), *(argument.ty for argument in [*emitted, *outputs]), *new]
        record.sizes = sizes_of(kernel, types, self._of_one_page)
        self.lengths.note([*emitted, *outputs], new, self._node_name)
        symbol = self._add_recorded_kernel(kernel, record)
        return self._call_on(symbol, [*numbers, *emitted], outputs, record.name, new)

    def export_kernel(self, kernel: tirx.PrimFunc, record: KernelRecord) -> str:
        if kernel not in self._exported:
            name = f"{record.name}{len(self._exported) or ''}"  # readable_names counts those of one name anew
            finished = kernel.with_attrs({EXPORTED: True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
            symbol = self._builder.add_func(finished.with_attr("global_symbol", name), name)
            self._exported[kernel] = symbol.name_hint
            self._kernels[symbol.name_hint] = dataclasses.replace(record, name=symbol.name_hint)
        return self._exported[kernel]

    def _add_recorded_kernel(self, kernel: tirx.PrimFunc, record: KernelRecord) -> tvm.ir.GlobalVar:
        symbol = self._add_finished_kernel(kernel, record.name)
        merged = self._kernels.setdefault(symbol.name_hint, dataclasses.replace(record, name=symbol.name_hint))
        merged.nodes = list(dict.fromkeys([*merged.nodes, *record.nodes]))
        return symbol

    def call_runtime(self, function: str, arguments: Sequence[Any], output: relax.TensorType, name: str) -> relax.Var:
        """Emit a call of a function of the runtime, ``function(*arguments, result)``; ints are passed by value."""
        operands = [relax.prim_value(each) if isinstance(each, int) else self.emit(each) for each in arguments]
        self.lengths.note(operands, [output], self._node_name)
        result = self.emit(relax.op.call_dps_packed(function, operands, out_ty=output), name)
        self._computed.add(result)
        return result

    def call_serial(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        output_types: Sequence[relax.TensorType],
        name: str,
    ) -> list[relax.Var]:
        """Like :meth:`call_kernel`, for a generic kernel that is not to be scheduled or reported as the target's."""
        symbol, emitted = self._add_finished_kernel(kernel, name), [*map(self.emit, arguments)]
        self.lengths.note(emitted, output_types, self._node_name)
        return self._call(symbol, emitted, output_types, name)

    def call_serial_on(
        self, kernel: tirx.PrimFunc, arguments: Sequence[relax.Expr], outputs: Sequence[relax.Var], name: str
    ) -> list[relax.Var]:
        """Like :meth:`call_serial`, for a kernel that updates ``outputs`` in place, as :meth:`call_kernel_on` does."""
        symbol, emitted = self._add_finished_kernel(kernel, name), [*map(self.emit, arguments)]
        self.lengths.note([*emitted, *outputs], [], self._node_name)
        return self._call_on(symbol, emitted, outputs, name)

    def _add_finished_kernel(self, kernel: tirx.PrimFunc, name: str) -> tvm.ir.GlobalVar:
        kernel = kernel.without_attr("global_symbol").with_attrs({"tirx.is_scheduled": True, "op_pattern": OPAQUE})
        return self._builder.add_func(kernel, identifier(name))

    def _call(
        self,
        symbol: tvm.ir.GlobalVar,
        arguments: Sequence[relax.Expr],
        output_types: Sequence[relax.TensorType],
        name: str,
    ) -> list[relax.Var]:
        """Emit ``symbol(*arguments, *outputs)``; the outputs are new memory, one variable each."""
        types = list(output_types)
        result = self.emit(relax.call_tir(symbol, list(arguments), types if len(types) > 1 else types[0]), name)
        return self._results(result, len(types), name)

    def _call_on(
        self,
        symbol: tvm.ir.GlobalVar,
        arguments: Sequence[Any],
        outputs: Sequence[relax.Var],
        name: str,
        new: Sequence[relax.TensorType] = (),
    ) -> list[relax.Var]:
        """Emit ``symbol(*arguments, *outputs, *new)``; the first results are in the memory of ``outputs``."""
        operands, count = [*arguments, *outputs], len(arguments)
        positions = [*range(count, len(operands)), *(-1 for _ in new)]
        types = [*(output.ty for output in outputs), *new]
        result = self.emit(relax.op.call_tir_inplace(symbol, operands, positions, types), name)
        return self._results(result, len(types), name)

    def _results(self, result: relax.Var, count: int, name: str) -> list[relax.Var]:
        """The ``count`` tensors that a kernel computed; ``result`` is the only one, or a tuple of them."""
        results = [result]
        if count > 1:
            results = [self.emit(relax.TupleGetItem(result, position), name) for position in range(count)]
        self._computed.update(results)
        return results
