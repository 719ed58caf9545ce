"""From a model in ONNX IR to one Relax function, with symbolic sizes.

:class:`Lowering` walks the nodes in order. Each node is converted by the table of generic operators
(:data:`moec.targets.tvm.converters.CONVERTERS`) or, for heavy operators, by the target's provider. Values known at
compile time (shapes above all) stay :class:`Known` and become code only where an operator needs them as a tensor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax, te, tirx

from moec.errors import UnsupportedError
from moec.targets.base import KernelRecord, TensorSpec, Weight
from moec.targets.tvm.constants import constant_of, dtype_of
from moec.targets.tvm.heavy import HeavyOps
from moec.targets.tvm.symbolic import MAXIMUM_KNOWN_ELEMENTS, Known, Sizes
from moec.targets.tvm.te_kernels import OPAQUE, prim_func

INLINE_ELEMENTS = 16
"""Constants up to this size stand in the function itself; larger ones are weights."""


@dataclasses.dataclass
class Lowered:
    """The Relax module, whose ``main`` takes the inputs and then the weights and returns a tuple of the outputs."""

    module: tvm.IRModule
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weights: list[Weight]
    kernels: dict[str, KernelRecord]
    """The target's own kernels by symbol name."""
    nodes: dict[str, ir.Node]
    """Which node a variable of ``main`` was made for, by the variable's name."""


def operator_name(node: ir.Node) -> str:
    """``MatMul`` in the default domain, ``moec.Route`` in another."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def node_name(node: ir.Node) -> str:
    """The node's name, or that of its first output where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type


def lower(model: ir.Model, heavy: HeavyOps) -> Lowered:
    """Lower a whole model. Raises UnsupportedError listing every operator without a converter."""
    return Lowering(model, heavy).run()


class Lowering:
    """One run over one model; also the :class:`~moec.targets.tvm.heavy.LoweringContext` of the target's converters."""

    def __init__(self, model: ir.Model, heavy: HeavyOps) -> None:
        from moec.targets.tvm.converters import CONVERTERS

        self.model = model
        self.sizes = Sizes()
        self._converters = {**CONVERTERS, **heavy.converters()}
        self._builder = relax.BlockBuilder()
        self._tensors: dict[ir.Value, relax.Expr] = {}
        self._known: dict[ir.Value, Known] = {}
        self._computed: set[relax.Var] = set()
        self._dimensions: dict[str, tirx.Var] = {}
        self._weights: dict[str, tuple[relax.Var, Weight]] = {}
        self._kernels: dict[str, KernelRecord] = {}
        self._node: ir.Node | None = None
        self._nodes: dict[str, ir.Node] = {}

    # The whole model

    def run(self) -> Lowered:
        self._refuse_unknown_operators()
        graph = self.model.graph
        inputs = [self._declare_input(value) for value in graph.inputs]
        with self._builder.function("main"):
            self._builder.begin_scope(inputs)
            with self._builder.dataflow():
                for node in graph:
                    self._convert(node)
                results = [self._result(value) for value in graph.outputs]
                output = self._builder.emit_output(relax.Tuple(results))
            self._builder.end_scope()
            parameters = [*inputs, *(variable for variable, _ in self._weights.values())]
            self._builder.emit_func_output(output, params=parameters)
        module = self._builder.get()
        module["main"] = module["main"].with_attr("num_input", len(inputs))
        return Lowered(
            module,
            [self._specification(value, variable) for value, variable in zip(graph.inputs, inputs, strict=True)],
            [self._specification(value, tensor) for value, tensor in zip(graph.outputs, results, strict=True)],
            [weight for _, weight in self._weights.values()],
            self._kernels,
            self._nodes,
        )

    def _refuse_unknown_operators(self) -> None:
        unknown = [node for node in self.model.graph if operator_name(node) not in self._converters]
        if not unknown:
            return
        first: dict[str, ir.Node] = {}
        for node in unknown:
            first.setdefault(operator_name(node), node)
        imports = self.model.graph.opset_imports
        listed = ", ".join(
            f"{node.op_type} (domain {node.domain or 'ai.onnx'!r}, opset {imports.get(node.domain, '?')}, "
            f"first at node {node_name(node)!r})"
            for node in first.values()
        )
        raise UnsupportedError(
            f"{len(unknown)} node(s) use operators that cannot be compiled: {listed}; "
            "expected operators of the default domain or moec; rewrite these parts of the model before compiling"
        )

    def _convert(self, node: ir.Node) -> None:
        self._node = node
        try:
            result = self._converters[operator_name(node)](self, node)
        except UnsupportedError as error:
            raise UnsupportedError(f"node {node_name(node)!r} ({operator_name(node)}): {error}") from error
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        for output, value in zip(node.outputs, results, strict=False):
            if isinstance(value, Known):
                self._known[output] = value
            elif value is not None:
                self._tensors[output] = self.emit(value, output.name or node.op_type)

    def convert_as(self, operator: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> list[relax.Expr]:
        """What another operator, heavy ones included, would make of these inputs."""
        node = ir.node(operator, inputs, attributes=attributes)
        result = self._converters[operator](self, node)
        for position in range(len(inputs)):
            node.replace_input_with(position, None)
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def value_of(self, tensor: relax.Expr) -> ir.Value:
        """An ONNX value that stands for a tensor made here, as an input of :meth:`convert_as`."""
        variable = self.emit(tensor)
        value = ir.Value(name=variable.name)
        self._tensors[value] = variable
        return value

    def _declare_input(self, value: ir.Value) -> relax.Var:
        if value.shape is None:
            raise UnsupportedError(f"input {value.name!r} has no rank; expected a shape, with names for dynamic sizes")
        dimensions = [
            int(size) if isinstance(size, int) else self._dimension(size.value or f"{value.name}_{axis}")
            for axis, size in enumerate(value.shape)
        ]
        variable = relax.Var(_identifier(value.name), relax.TensorType(dimensions, dtype_of(value)))
        self._tensors[value] = variable
        return variable

    def _dimension(self, name: str) -> tirx.Var | int:
        """The size of that name. Exporters write a size they fixed as the name "16"."""
        if name.isdecimal():
            return int(name)
        if name not in self._dimensions:
            self._dimensions[name] = self.sizes.variable(name)
        return self._dimensions[name]

    def _result(self, value: ir.Value) -> relax.Var:
        """The tensor of a graph output; a copy where it would otherwise share memory with an input or a constant."""
        self._node = value.producer()
        tensor = self.tensor(value)
        if tensor in self._computed:
            return tensor
        return self.compute(lambda source: te.compute(source.shape, lambda *i: source(*i)), [tensor], "copy")[0]

    def _specification(self, value: ir.Value, tensor: relax.Expr) -> TensorSpec:
        names = [str(size) if not isinstance(size, int) else size for size in map(self.sizes.simplify, tensor.ty.shape)]
        if value.shape is not None:
            names = [
                size if isinstance(size, int) else (given.value if isinstance(given, ir.SymbolicDim) else None) or size
                for size, given in zip(names, value.shape, strict=True)
            ]
        return TensorSpec(value.name or "", str(tensor.ty.dtype), tuple(names))

    # What converters ask

    def tensor(self, value: ir.Value) -> relax.Expr:
        """The value as a Relax tensor. Known values become code here, large constants weights."""
        if value not in self._tensors:
            if value in self._known:
                self._tensors[value] = self.materialise(self._known[value], value.name or "known")
            else:
                self._tensors[value] = self._constant_tensor(value)
        return self._tensors[value]

    def _constant_tensor(self, value: ir.Value) -> relax.Expr:
        data = constant_of(value)
        if data is None:
            raise UnsupportedError(f"value {value.name!r} has no producer; expected an input, a constant or a node")
        if data.size <= INLINE_ELEMENTS:
            return relax.const(data.numpy(), dtype_of(value))
        return self.add_weight(value.name or "constant", tuple(data.shape.numpy()), dtype_of(value), data.numpy)

    def is_constant(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        if value in self._known:
            return self._known[value].numbers is not None
        return constant_of(value) is not None

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        if value in self._known:
            return self._known[value].numbers
        data = constant_of(value)
        return None if data is None else data.numpy()

    def known(self, value: ir.Value) -> Known | None:
        """The value at compile time, possibly symbolic, if it is a small integer or bool tensor."""
        if value in self._known:
            return self._known[value]
        data = constant_of(value)
        if data is None or data.size > MAXIMUM_KNOWN_ELEMENTS:
            return None
        array = data.numpy()
        if array.dtype.kind not in "iub":
            return None
        self._known[value] = Known.of(array, array.dtype.name)
        return self._known[value]

    def shape(self, value: ir.Value) -> list[tirx.Expr]:
        return [self.sizes.expression(size) for size in self.dimensions(value)]

    def dimensions(self, value: ir.Value) -> list[Any]:
        """Like :meth:`shape`, with ints for the static dims."""
        if value in self._tensors:
            return [self.sizes.simplify(size) for size in self._tensors[value].ty.shape]
        if value in self._known:
            return list(self._known[value].elements.shape)
        data = constant_of(value)
        if data is None:
            raise UnsupportedError(f"value {value.name!r} has no producer; expected an input, a constant or a node")
        return [int(size) for size in data.shape.numpy()]

    def dtype(self, value: ir.Value) -> str:
        if value in self._tensors:
            return str(self._tensors[value].ty.dtype)
        if value in self._known:
            return self._known[value].dtype
        return dtype_of(value)

    def numbers(self, value: ir.Value | None, what: str) -> list[int] | None:
        """The elements of a constant integer tensor (axes, split sizes, k); None where the input is absent."""
        if value is None:
            return None
        known = self.known(value)
        array = None if known is None else known.numbers
        if array is None:
            raise UnsupportedError(
                f"{what} comes from {value.name!r}, which is computed at run time; expected a constant"
            )
        return [int(element) for element in array.flat]

    def runtime_sizes(self, value: ir.Value) -> list[Any]:
        """The elements of a rank-0 or rank-1 integer tensor as sizes. Where they are computed at run time, each
        becomes a new symbolic size, read from the tensor when the program runs."""
        known = self.known(value)
        if known is not None:
            return [self.sizes.simplify(element) for element in known.elements.flat]
        (count,) = self.dimensions(value) or [1]
        if not isinstance(count, int):
            raise UnsupportedError(f"{value.name!r} holds a shape of dynamic rank; expected a fixed number of dims")
        tensor = self.tensor(value)
        flat = self.compute(
            lambda source: te.compute(
                (count,), lambda i: (source(i) if source.shape else source()).astype("int64"), name="sizes"
            ),
            [tensor],
            "sizes",
        )[0]
        return self._read_sizes(flat, [f"{value.name}_{position}" for position in range(count)])

    def size_from(self, tensor: relax.Expr, name: str) -> tirx.Var:
        """A new symbolic size that the program reads from an int64 tensor of shape [1]."""
        return self._read_sizes(tensor, [name])[0]

    def _read_sizes(self, tensor: relax.Expr, names: list[str]) -> list[tirx.Var]:
        fresh = [self.sizes.variable(name) for name in names]
        self._builder.match_cast(self.emit(relax.op.tensor_to_shape(tensor)), relax.ShapeType(fresh))
        return fresh

    # What converters add

    def emit(self, expression: relax.Expr, name: str = "") -> relax.Var:
        if isinstance(expression, relax.Var):
            return expression
        variable = self._builder.emit(expression, name_hint=_identifier(name) if name else "")
        if self._node is not None:
            self._nodes[variable.name] = self._node
        return variable

    def reshape(self, tensor: relax.Expr, sizes: Sequence[Any]) -> relax.Var:
        """The same elements under another shape, without a copy."""
        view = self.emit(relax.op.reshape(tensor, [self.sizes.expression(size) for size in sizes]))
        if tensor in self._computed:
            self._computed.add(view)
        return view

    def assume_shape(self, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Var:
        """A copy of the tensor with another expression for its shape, checked when the program runs.

        The check is the one that every kernel makes of its arguments. (Relax's match_cast cannot be used: passes after
        it recurse without end where a size that is already bound is matched with an expression of itself.)
        """
        sizes = [self.sizes.expression(size) for size in shape]
        dtype = str(tensor.ty.dtype)
        source = te.placeholder(sizes, dtype, name="source")
        copy = te.compute(sizes, lambda *indices: source(*indices), name="checked")
        kernel, extra = prim_func([source], [copy])
        symbol = self._builder.add_func(kernel.with_attr("op_pattern", OPAQUE), "checked_shape")
        call = relax.call_tir(symbol, [self.emit(tensor), *extra], relax.TensorType(sizes, dtype))
        return self._unpack(call, 1, "checked_shape")[0]

    def materialise(self, known: Known, name: str = "known") -> relax.Var:
        """A known value as a tensor: a constant, or a kernel that writes the symbolic elements."""
        if known.numbers is not None:
            return self.emit(relax.const(known.numbers, known.dtype), name)
        elements = [self.sizes.expression(element).astype(known.dtype) for element in known.elements.flat]
        shape = known.elements.shape

        def write(*indices: tirx.Expr) -> tirx.Expr:
            position: Any = tirx.IntImm("int64", 0)
            for index, size in zip(indices, shape, strict=True):
                position = position * size + index
            chosen = elements[-1]
            for number in range(len(elements) - 2, -1, -1):
                chosen = tirx.if_then_else(position == number, elements[number], chosen)
            return chosen

        return self.compute(lambda: te.compute(shape, write, name="known"), [], "shape_value")[0]

    def add_weight(self, name: str, shape: Sequence[int], dtype: str, load: Callable[[], np.ndarray]) -> relax.Var:
        shape = tuple(int(size) for size in shape)
        if name in self._weights:
            variable, weight = self._weights[name]
            if (weight.shape, weight.dtype) != (shape, dtype):
                raise ValueError(f"weight {name!r} is {weight.dtype}{weight.shape} and cannot also be {dtype}{shape}")
            return variable
        variable = relax.Var(_identifier(name), relax.TensorType(shape, dtype))
        self._weights[name] = (variable, Weight(name, shape, dtype, load))
        return variable

    def compute(self, function: Callable[..., Any], arguments: Sequence[relax.Expr], name: str) -> list[relax.Var]:
        """Emit a generic kernel. ``function`` takes one TE tensor per argument, may use any size of this lowering, and
        returns a TE tensor or a list of them."""
        placeholders = [
            te.placeholder(argument.ty.shape.values, str(argument.ty.dtype), name=f"input_{position}")
            for position, argument in enumerate(arguments)
        ]
        result = function(*placeholders)
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        kernel, extra = prim_func(placeholders, outputs)
        symbol = self._builder.add_func(kernel.with_attr("tirx.noalias", True), _identifier(name))
        types = [relax.TensorType(output.shape, str(output.dtype)) for output in outputs]
        call = relax.call_tir(symbol, [*arguments, *extra], types if len(types) > 1 else types[0])
        return self._unpack(call, len(types), name)

    def call_kernel(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        output_types: Sequence[relax.TensorType],
        record: KernelRecord,
    ) -> list[relax.Var]:
        symbol = self._add_finished_kernel(kernel, record.name)
        merged = self._kernels.setdefault(symbol.name_hint, dataclasses.replace(record, name=symbol.name_hint))
        merged.nodes = list(dict.fromkeys([*merged.nodes, *record.nodes]))
        types = list(output_types)
        call = relax.call_tir(symbol, [self.emit(a) for a in arguments], types if len(types) > 1 else types[0])
        return self._unpack(call, len(types), record.name)

    def call_serial(
        self,
        kernel: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        output_types: Sequence[relax.TensorType],
        name: str,
    ) -> list[relax.Var]:
        """Like :meth:`call_kernel`, for a generic kernel that is not to be scheduled or reported as the target's."""
        types = list(output_types)
        symbol = self._add_finished_kernel(kernel, name)
        call = relax.call_tir(symbol, [self.emit(a) for a in arguments], types if len(types) > 1 else types[0])
        return self._unpack(call, len(types), name)

    def _add_finished_kernel(self, kernel: tirx.PrimFunc, name: str) -> tvm.ir.GlobalVar:
        kernel = kernel.without_attr("global_symbol").with_attrs({"tirx.is_scheduled": True, "op_pattern": OPAQUE})
        return self._builder.add_func(kernel, _identifier(name))

    def _unpack(self, call: relax.Expr, count: int, name: str) -> list[relax.Var]:
        result = self.emit(call, name)
        several = (self.emit(relax.TupleGetItem(result, position), name) for position in range(count))
        results = [result] if count == 1 else list(several)
        self._computed.update(results)
        return results


def _identifier(name: str | None) -> str:
    return re.sub(r"\W", "_", name or "value") or "value"


Converter = Callable[[Lowering, ir.Node], Any]
ConverterTable = Mapping[str, Converter]
