"""Lowering of a model in ONNX IR to one Relax function, with symbolic sizes.

:class:`Lowering` walks the nodes in order and converts each by the table that it is given
(:func:`moec.targets.tvm.onnx.converters.all_converters`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.common.guards import parse_size
from moec.common.names import node_name, operator_name
from moec.common.specs import SEQUENCES, WANTED, LastTokens
from moec.ir.batches import is_batched
from moec.ir.states import states_of
from moec.ir.streaming import is_streamed
from moec.ir.weight_operands import decoding_nodes
from moec.targets.base import TensorSpec
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS
from moec.targets.tvm.lowering.broadcasting import broadcast_shape, broadcast_to
from moec.targets.tvm.lowering.constants import dtype_of
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.function_builder import identifier
from moec.targets.tvm.lowering.graph_values import GraphValues
from moec.targets.tvm.lowering.held_states import Holding, held_states, rounded_by_writing
from moec.targets.tvm.lowering.last_tokens import LENGTH_AXIS, Narrowing
from moec.targets.tvm.lowering.lowered import Lowered
from moec.targets.tvm.lowering.paged_tensors import BatchTensors, PagedTensor, Places, append_problem
from moec.targets.tvm.lowering.unknown_operators import refuse_unknown_operators
from moec.targets.tvm.sizes.symbolic import StaticValue

Sampler = Callable[[LoweringContext, ir.Node, int, str], str]
"""A target's way to select tokens: makes a kernel for logits of a node with a vocabulary and an element type, and
returns its symbol, or an empty string where it has none for them."""


def lower(
    model: ir.Model,
    converters: Mapping[str, Converter],
    holding: Holding | None = None,
    streams: bool = False,
    sampler: Sampler | None = None,
) -> Lowered:
    """Lower a whole model.

    ``converters``: by operator type, with ``domain.`` in front outside the default domain. ``holding``: the target's
    way to hold states; None where it holds none. ``streams``: whether the target can load the experts of a streamed
    model when they are selected. ``sampler``: the target's way to select tokens. Raises UnsupportedError
    listing every operator without a converter."""
    return Lowering(model, converters, holding, streams, sampler).run()


class Lowering(GraphValues):
    """One run over one model; also the LoweringContext (:mod:`moec.targets.tvm.lowering.context`) of converters."""

    def __init__(
        self,
        model: ir.Model,
        converters: Mapping[str, Converter],
        holding: Holding | None = None,
        streams: bool = False,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        self._sampler = sampler
        self.model, self._holding, self.streams = model, holding, streams and is_streamed(model)
        self.converters = converters
        """The converters of all operators, also for the bodies of loops."""
        self.bodies: list[Lowered] = []
        self._states = {} if holding is None else held_states(model.graph, holding)
        self._done_by_writing = rounded_by_writing(self._states.values())
        self._replaced: dict[str | None, str] = {}
        """Outputs of states of a batch that each run replaces, by input."""
        self._entries: dict[ir.Value, PagedTensor] = {}
        """Where these states lie, by output."""
        self._filled: dict[tuple[ir.Value | None, str, str], relax.Var] = {}
        self._ends: dict[tuple[relax.Expr, str], relax.Var] = {}
        self._dimensions: dict[str, tirx.Var] = {}
        self._in_windows: dict[str, tirx.Var] = {}
        """Numbers of entries that lie in pages, of states with a window."""
        count = self.sizes.variable(WANTED)
        self.batch = self._batch_tensors(count) if is_batched(model) else None
        self._last = self._narrowing(count)
        self._windows = {} if holding is None else holding.windows(self, model.graph, self._states)

    def _batch_tensors(self, rows: tirx.Var) -> BatchTensors:
        """The parameters of a batched program. Raises UnsupportedError where the target cannot write at any place."""
        if self._holding is None or not self._holding.batches:
            raise UnsupportedError("this target has no kernels for batches of sequences; compile without batches")
        in_pages = {state.state.input for state in self._states.values()}
        states = states_of(self.model)
        growing = [state.input for state in states if state.axis is not None]
        self._replaced = {state.input: state.output for state in states if state.axis is None}
        others = [name for name in growing if name not in in_pages]
        if others:
            raise UnsupportedError(f"no batches of sequences: state {others[0]!r} is none that pages hold")
        count = self._dimension(SEQUENCES)
        pages, tokens = (self.sizes.variable(name) for name in ("sequence_pages", "new_tokens"))
        return BatchTensors.of_sizes(count, pages, tokens, rows)

    def _narrowing(self, count: tirx.Var) -> Narrowing | None:
        """The plan to compute logits of some tokens alone; None where the model has none."""
        return Narrowing.of(self.model, count, None if self.batch is None else self.batch.rows)

    # The whole model

    def run(self) -> Lowered:
        refuse_unknown_operators(self.model, self.converters.keys())
        graph = self.model.graph
        inputs = [self._declare_input(value) for value in graph.inputs]
        in_use = [*self._declare_lengths(), *self._declare_wanted()]
        decoding = decoding_nodes(graph)
        with self._builder.function("main"):
            self._builder.begin_scope([*inputs, *in_use])
            with self._builder.dataflow(), self.sizes.naming(self.computed_size):
                for node in graph:
                    if node in self._done_by_writing:
                        self._leave_out(node)
                    elif (self._last is not None and node in self._last.passed_by) or self.takes_columns(node):
                        continue
                    elif node not in decoding:  # kernels read weights as they are stored, so decoding makes no code
                        self._convert(node)
                results = [self._result(value) for value in graph.outputs]
                for value, result in zip(graph.outputs, results, strict=True):
                    self.lengths.note([result], [], f"the output {value.name!r}")
                output = self._builder.emit_output(relax.Tuple(results))
            self._builder.end_scope()
            parameters = [*inputs, *in_use, *(variable for variable, _ in self._weights.values())]
            self._builder.emit_func_output(output, params=parameters)
        states = [
            dataclasses.replace(state.state, window=self._windows.get(value, 0))
            for value, state in self._states.items()
        ]
        if self._holding is not None and self.batch is None:
            tensors = [self._paged[value] for value in self._states]
            states = [self._holding.converting(self, *pair) for pair in zip(states, tensors, strict=True)]
        last = None if self._last is None else self._with_sampler(self._last.spec, results)
        module = self._builder.get()
        module["main"] = module["main"].with_attr("num_input", len(inputs) + len(in_use))
        return Lowered(
            module,
            [
                self._specification(value, self._paged.get(value, tensor))
                for value, tensor in zip(graph.inputs, inputs, strict=True)
            ],
            [
                self._specification(value, self._paged.get(value, tensor))
                for value, tensor in zip(graph.outputs, results, strict=True)
            ],
            [weight for _, weight in self._weights.values()],
            self._kernels,
            self._nodes,
            states,
            bool(states) and self._holding is not None and self._holding.lengths_in_memory,
            [*self.lengths.fixed],
            self.beyond,
            self.streamed_experts(),
            self.row_tables(),
            last,
            self._untold(),
            self.bodies,
        )

    def _untold(self) -> dict[str, Any]:
        sizes = dict(self._of_one_page)
        if self._last is not None:
            sizes[self._last.wanted] = tirx.IntImm("int64", 1)
        return {variable.name: size for variable, size in sizes.items()}

    def _with_sampler(self, last: LastTokens, results: Sequence[relax.Expr]) -> LastTokens:
        """The description with the kernel that selects tokens by these logits, if the target has one."""
        (place,) = (place for place, value in enumerate(self.model.graph.outputs) if value.name == last.output)
        logits, node = results[place].ty, self.model.graph.outputs[place].producer()
        if self._sampler is None or node is None or not isinstance(logits.shape[-1], tirx.IntImm):
            return last
        sample = self._sampler(self, node, int(logits.shape[-1]), str(logits.dtype))
        return dataclasses.replace(last, sample=sample)

    def _convert(self, node: ir.Node) -> None:
        self._node = node
        try:
            converted = self.converters[operator_name(node)]
            if self._last is not None and node in self._last.nodes:
                result = self._last.convert(self, node, converted)
            else:
                result = converted(self, node)
        except UnsupportedError as error:
            raise UnsupportedError(f"node {node_name(node)!r} ({operator_name(node)}): {error}") from error
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        for output, value in zip(node.outputs, results, strict=False):
            if isinstance(value, StaticValue):
                self._static[output] = value
            elif isinstance(value, PagedTensor):
                self._paged[output] = value
            elif value is not None:
                self._tensors[output] = self.emit(value, output.name or node.op_type)
                if output in self._entries:
                    self._paged[output] = self.appended(node, self._entries[output], self._tensors[output])

    def convert_as(self, operator: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> list[relax.Expr]:
        """Convert another operator, heavy or not, on these inputs, and return its outputs."""
        node = ir.node(operator, inputs, attributes=attributes)
        result = self.converters[operator](self, node)
        for position in range(len(inputs)):
            node.replace_input_with(position, None)
        return list(result) if isinstance(result, (list, tuple)) else [result]

    def value_of(self, tensor: relax.Expr) -> ir.Value:
        """An ONNX value for a tensor made by a converter, to pass as an input to :meth:`convert_as`."""
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
        try:
            dtype = dtype_of(value)
        except UnsupportedError as error:
            users = "".join(f" to {operator_name(use.node)}" for use in list(value.uses())[:1])
            users = users or ", which no operator takes,"
            raise UnsupportedError(f"input {value.name!r}{users}: {error}") from error
        if value in self._states:
            return self._declare_pages(value, dimensions, dtype)
        if value.name in self._replaced:
            return self._declare_entries(value, dimensions, dtype)
        variable = relax.Var(identifier(value.name), relax.TensorType(dimensions, dtype))
        self._tensors[value] = variable
        return variable

    def _declare_pages(self, value: ir.Value, dimensions: list[Any], dtype: str) -> relax.Var:
        state, _, output, roundings = self._states[value]
        length, row, dimensions[state.axis] = dimensions[state.axis], dimensions[-1], self.sizes.variable("page")
        inner = dimensions[:-1] if state.dtype == INT8_ROWS else dimensions
        sizes = [self.sizes.variable("pages"), *inner]
        growth = parse_size(state.growth, {"min": tirx.min, "max": tirx.max})
        grown = length + growth({name: self._dimension(name) for name in growth.names})
        one_page = {sizes[0]: 1, dimensions[state.axis]: grown}
        self._of_one_page |= {variable: self.sizes.expression(size) for variable, size in one_page.items()}
        pages = relax.Var(identifier(value.name), relax.TensorType(sizes, state.dtype))
        window = self._windows.get(value, 0)
        kept = self._kept(length, window) if window and self.batch is None else None
        self._paged[value] = PagedTensor(pages, state.axis, length, dtype, row, output, window > 0, kept)
        if roundings is not None:
            self._paged[roundings[0].value] = self._paged[value]
        return pages

    def _declare_entries(self, value: ir.Value, dimensions: list[Any], dtype: str) -> relax.Var:
        """A state of a batch that each run replaces: pages of one entry, [entries, 1, ...]."""
        (count, *sizes), entries = dimensions, self.sizes.variable("entries")
        self._of_one_page[entries] = self.sizes.expression(count)
        pages = relax.Var(identifier(value.name), relax.TensorType([entries, 1, *sizes], dtype))
        (after,) = (output for output in self.model.graph.outputs if output.name == self._replaced[value.name])
        self._paged[value] = PagedTensor(pages, 0, count, dtype, sizes[-1] if sizes else 1, after, of_sequences=True)
        self._entries[after] = self._paged[value]
        return pages

    def _kept(self, length: Any, window: int) -> tirx.Var:
        """The number of entries of a state that lie in pages: all in a plain run, at least the last ones that a window
        shows in a session."""
        name = f"{length}_within_{window}"
        if name not in self._in_windows:
            self._in_windows[name] = self.sizes.variable(name)
            self._of_one_page[self._in_windows[name]] = self.sizes.expression(length)
        return self._in_windows[name]

    def leave_out(self, node: ir.Node, source: ir.Value) -> bool:
        narrowed = {} if self._last is None else self._last.nodes
        if (node in narrowed) != (self._node in narrowed):
            return False
        self._done_by_writing[node] = source
        return True

    def _leave_out(self, node: ir.Node) -> None:
        """Skip a node, such as one that rounds, and let its result be the value in its place."""
        source = self._done_by_writing[node]
        if source is not None:
            self._tensors[node.outputs[0]] = self.tensor(source)

    def _declare_lengths(self) -> list[relax.Var]:
        """The parameter ``lengths``: a shape with the lengths of the states in use, which their pages do not tell, and
        the entries in pages of those with a window. A tensor int64[1] of each follows where kernels read lengths in
        memory."""
        states = [self._paged[value] for value in self._states]
        numbers = dict.fromkeys([*(state.length for state in states), *(state.in_pages for state in states)])
        lengths = [*map(self.sizes.expression, numbers)]
        if self.batch is not None:
            return list(self.batch)
        if not lengths:
            return []
        if self._holding is not None and self._holding.lengths_in_memory:
            of_one = relax.TensorType([1], "int64")
            self._in_memory = {str(length): relax.Var(f"in_use_{length}", of_one) for length in lengths}
            pairs = zip(lengths, self._in_memory.values(), strict=True)
            self.lengths.parameters = {length: tensor for length, tensor in pairs if isinstance(length, tirx.Var)}
        return [relax.Var("lengths", relax.ShapeType(lengths)), *self._in_memory.values()]

    def _declare_wanted(self) -> list[relax.Var]:
        """The parameter ``wanted``: a shape with the number of last tokens whose logits are requested."""
        if self._last is None or self.batch is not None:
            return []
        (ids,) = (value for value in self.model.graph.inputs if value.name == self._last.spec.input)
        self._of_one_page[self._last.wanted] = self.shape(ids)[LENGTH_AXIS]
        return [relax.Var(WANTED, relax.ShapeType([self._last.wanted]))]

    def _dimension(self, name: str) -> tirx.Var | int:
        """The symbolic size of that name, or a number: exporters write a fixed size as a name such as "16"."""
        if name.isdecimal():
            return int(name)
        if name not in self._dimensions:
            self._dimensions[name] = self.sizes.variable(name)
        return self._dimensions[name]

    def _result(self, value: ir.Value) -> relax.Var:
        """The tensor of a graph output; a copy where it would otherwise share memory with an input or a constant."""
        self._node = value.producer()
        if value in self._paged:
            return self.emit(self._paged[value].pages)
        tensor = self.tensor(value)
        if tensor in self._computed:
            return tensor
        return self.compute(lambda source: te.compute(source.shape, lambda *i: source(*i)), [tensor], "copy")[0]

    def _specification(self, value: ir.Value, tensor: relax.Expr | PagedTensor) -> TensorSpec:
        sizes = [self._of_one_page.get(size, size) if isinstance(size, tirx.Var) else size for size in tensor.ty.shape]
        names = [str(size) if not isinstance(size, int) else size for size in map(self.sizes.simplify, sizes)]
        if value.shape is not None and len(value.shape) == len(names):  # exporters declare ranks that are not so
            names = [
                size
                if isinstance(size, int)
                else (declared.value if isinstance(declared, ir.SymbolicDim) else None) or size
                for size, declared in zip(names, value.shape, strict=True)
            ]
        return TensorSpec(value.name or "", str(tensor.ty.dtype), tuple(names))

    # What converters ask

    def broadcast_shape(self, shapes: Sequence[Sequence[Any]]) -> list[tirx.Expr]:
        return [self.sizes.expression(size) for size in broadcast_shape(self.sizes, shapes)]

    def broadcast_to(self, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
        return broadcast_to(self, tensor, shape)

    def appended(self, node: ir.Node, past: PagedTensor, new: relax.Expr, places: Places | None = None) -> PagedTensor:
        assert self._holding is not None, "a target that holds states can write behind them"
        length = past.length if places is None else places.length
        if places is None and not past.of_sequences:
            length = self.sizes.simplify(past.length + new.ty.shape[past.axis])
        if self.batch is not None:
            places = Places(self.batch.of(past).places, length, by_entry=True)
        problem = append_problem(past, str(new.ty.dtype), places)
        pages = self._holding.append(self, node, problem, past, self.emit(new), places)
        kept = None if past.kept is None else self.sizes.simplify(past.kept + new.ty.shape[past.axis])
        return dataclasses.replace(past, pages=pages, length=length, continued=None, kept=kept)

    def last_entries(self, tensor: relax.Expr, count: Any) -> relax.Expr:
        (*before, size), count = tensor.ty.shape, self.sizes.expression(count)
        key = tensor, str(count)
        if key not in self._ends:
            shape = [*before, count]

            def build(source: te.Tensor) -> te.Tensor:
                return te.compute(shape, lambda *at: source(*at[:-1], at[-1] + (size - count)), name="last_entries")

            self._ends[key] = self.compute(build, [tensor], "last_entries")[0]
        return self._ends[key]

    def ignoring_padding(self, tensor: relax.Expr) -> relax.Var:
        return self.lengths.ignored(self.reshape(tensor, list(tensor.ty.shape)))

    def filled(self, cached: PagedTensor, used: ir.Value | None = None) -> relax.Var:
        if self.batch is not None:
            return self.batch.lengths
        count, length = cached.ty.shape[0], self.sizes.expression(cached.in_pages)
        key = used, str(count), str(length)
        if key not in self._filled:
            operands = [] if used is None else [self.tensor_of_shape(used, [count])]

            def build(*limits: te.Tensor) -> te.Tensor:
                return te.compute(
                    (count,), lambda b: tirx.min(limits[0](b), length) if limits else length, name="filled"
                )

            self._filled[key] = self.compute(build, operands, "filled")[0]
        return self._filled[key]


Converter = Callable[[Lowering, ir.Node], Any]
