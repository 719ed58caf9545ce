"""The model of a batch: the graph that computes tokens of several sequences of different lengths in one run.

Sequences of a batch (:mod:`moec.ir.batches`) lie one after the other along the axis of tokens. So every node has to
compute each token independently, except attention, which reads the cache of one sequence for each of its tokens. The
rules of operators for sequences (:mod:`moec.ir.sequence_rules`), applied to tokens, prove this node by node; an error
names a node without proof.

1. There is one batch entry. No token is padding, so masks of counting tokens become ones, and only the causal order
   remains of masks of attention, with or without a window.
2. A value that numbers the tokens from the length of the past on becomes an input, because each token has its own past.
3. States that each run replaces have an entry for each sequence (:mod:`moec.compiling.batch_states`).
4. The outputs are the logits and the states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import sympy

from moec.common.errors import InputError, UnsupportedError
from moec.common.specs import POSITIONS, State
from moec.compiling.batch_latents import absorb_latents
from moec.compiling.batch_proof import BatchProof, refusal
from moec.compiling.batch_states import separate_states
from moec.compiling.model_inputs import ModelInputs
from moec.frontend.onnx.conditions import read
from moec.ir import sizes
from moec.ir.batches import SINKS, WINDOW, mark_batched
from moec.ir.graphs import add_constant, is_op
from moec.ir.masks.rules import elements
from moec.ir.masks.visibility import read_window
from moec.ir.sequence_cuts import known_shape, size_names
from moec.ir.sinks import sinks_of
from moec.ir.states import states_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.interface import Interface
from moec.runtime.roles import Roles, roles_of
from moec.targets.base import Made, Program, Target

_MASK = 3
_NO_PAST = "moec_past"
"""Name for the size of the past, for a model without a state that has an entry for each token."""
_CLEANING = (
    "infer-shapes,fold-shapes,raise-masks,simplify,eliminate-common-subexpressions,remove-dead-nodes,infer-shapes"
)


def batched_model(model: ir.Model, interface: Interface) -> ir.Model:
    """Make the model of a batch from a language model after all passes, which stays unchanged.

    Raises UnsupportedError, with the reason, for a model whose sequences cannot be batched.
    """
    copy = model.clone()
    batch = _BatchGraph.of(copy, absorb_latents(copy, interface))
    batch.fix_sizes()
    batch.see_all_tokens()
    batch.move_sinks()
    pipeline.run(copy, pipeline.parse(_CLEANING), Report())
    batch.read_windows()
    batch.take_positions()
    convolutions = separate_states(copy.graph, batch.replaced, batch.tokens)
    named = "infer-shapes,fold-shapes," if batch.replaced else ""  # new sizes follow from those of the inputs
    pipeline.run(copy, pipeline.parse(f"{named}remove-dead-nodes,infer-shapes"), Report())
    BatchProof.of(copy.graph, batch.tokens, batch.states, convolutions).check(batch.roles.logits.name)
    mark_batched(copy)
    return copy


def batch_program(model: ir.Model, inputs: ModelInputs, program: Made, target: Target) -> Program:
    """Compile the program of a batch. ``inputs``, ``program``: those of the model. Raises what :func:`batched_model`
    and the target raise."""
    interface = Interface(program.inputs, program.outputs, states_of(model), inputs.limits, inputs.sizes)
    compiled = target.compile(batched_model(model, interface))
    if not isinstance(compiled, Program):
        raise UnsupportedError("no batches of sequences: the target makes projects; compile without batches")
    return compiled


@dataclasses.dataclass(frozen=True)
class _BatchGraph:
    """A model that becomes one of a batch. ``tokens``, ``past``: named sizes of the new tokens and of those before."""

    model: ir.Model
    interface: Interface
    roles: Roles
    tokens: str
    past: str

    @staticmethod
    def of(model: ir.Model, interface: Interface) -> _BatchGraph:
        try:
            roles = roles_of(interface)
        except InputError as error:
            raise UnsupportedError(f"no batches of sequences: {error}") from error
        specs = {spec.name: spec for spec in interface.inputs}
        reason = next(_reasons_against(interface, roles, read(model, "model").notes), None)
        lengths = {specs[state.input].shape[state.axis] for state in interface.states if state.axis is not None}
        tokens, past = roles.ids.shape[1], lengths.pop() if len(lengths) == 1 else None
        past = _NO_PAST if all(state.axis is None for state in interface.states) else past
        if reason is None and not (isinstance(tokens, str) and isinstance(past, str)):
            reason = "tokens, or those before them, have no named size of their own"
        if reason is not None:
            raise UnsupportedError(f"no batches of sequences: {reason}")
        return _BatchGraph(model, interface, roles, str(tokens), str(past))

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    @property
    def states(self) -> Sequence[State]:
        return self.interface.states

    @property
    def replaced(self) -> Sequence[str]:
        """Inputs of the states that each run replaces."""
        return [state.input for state in self.states if state.axis is None]

    def input(self, name: str) -> ir.Value:
        return next(value for value in self.graph.inputs if value.name == name)

    def fix_sizes(self) -> None:
        """Let there be one batch entry, and as many entries of a mask as there are tokens."""
        total = sizes.size(self.past) + sizes.size(self.tokens)
        fixed: dict[sympy.Symbol, sympy.Expr] = {}
        for spec in self.interface.inputs:
            axes = self.roles.sequence_axes(spec)
            fixed |= {sizes.size(str(spec.shape[axis])): sympy.S.One for axis in axes}
            if spec.name == self.roles.mask and isinstance(spec.shape[1], str):
                fixed |= {symbol: total for symbol in _names(spec.shape[1]) if spec.shape[1] == symbol.name}
        values = [*self.graph.inputs, *(value for node in self.graph.all_nodes() for value in node.outputs)]
        for value in (*values, *self.graph.initializers.values()):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(size, fixed) for size in value.shape])

    def see_all_tokens(self) -> None:
        """Let the mask of tokens that count be ones."""
        if self.roles.mask is None:
            return
        mask = self.input(self.roles.mask)
        state = next((state for state in self.states if state.axis is not None), None)
        if state is None or state.axis is None or mask.dtype is None:
            raise UnsupportedError(f"no batches of sequences: no state tells how long input {mask.name!r} is")
        first = self.graph[0]
        past = ir.node("Shape", [self.input(state.input)], attributes={"start": state.axis, "end": state.axis + 1})
        new = ir.node("Shape", [self.input(self.roles.ids.name)], attributes={"start": 1, "end": 2})
        total = ir.node("Add", [past.outputs[0], new.outputs[0]])
        batch_size = add_constant(self.graph, ir.tensor(np.array([1], np.int64)), "moec.batch.one")
        shape = ir.node("Concat", [batch_size, total.outputs[0]], attributes={"axis": 0})
        number = add_constant(self.graph, ir.tensor(np.ones((1, 1), mask.dtype.numpy())), "moec.batch.counts")
        ones = ir.node("Expand", [number, shape.outputs[0]])
        for label, node in (("past", past), ("new", new), ("total", total), ("shape", shape), ("ones", ones)):
            node.name = node.outputs[0].name = f"moec.batch.{label}"
            self.graph.insert_before(first, node)
        (result,) = ones.outputs
        result.dtype, result.shape = mask.dtype, mask.shape
        mask.replace_all_uses_with(result)
        self.graph.inputs.remove(mask)

    def move_sinks(self) -> None:
        """Let sinks be an operand of their own, so that keys are those of the cache."""
        for node in self.graph:
            sinks = sinks_of(node) if is_op(node, "Attention") else None
            if sinks is not None:
                node.resize_inputs(SINKS + 1)
                for place, value in ((1, sinks.key), (2, sinks.value), (_MASK, sinks.mask), (SINKS, sinks.logits)):
                    node.replace_input_with(place, value)

    def read_windows(self) -> None:
        """Let attributes say the windows that masks hold."""
        of_tensors = elements()
        windows = {node: read_window(node, of_tensors) for node in self.graph if is_op(node, "Attention")}
        for node, window in windows.items():
            if node.inputs[_MASK:] and node.inputs[_MASK] is not None and not window.is_alone:
                raise refusal(node, "its mask is not known to be the causal order, with or without a window")
            if window.is_alone:
                node.attributes[WINDOW] = ir.AttrInt64(WINDOW, window.size)
                node.replace_input_with(_MASK, None)

    def take_positions(self) -> None:
        """Replace the first values that are the number of each token by an input."""
        of_tensors, past = elements(), sizes.size(self.past)
        index = of_tensors.axis("t", sizes.size(self.tokens))
        positions: ir.Value | None = None
        for node in list(self.graph):
            (value, *_) = node.outputs
            axis = self._token_axis(value)
            if axis is None or value.dtype is None or not value.dtype.is_integer():
                continue
            shape = known_shape(value) or []
            place = tuple(index if number == axis else sympy.S.Zero for number in range(len(shape)))
            number = of_tensors.number(value, place)
            if number is None or sympy.expand(number - index - past) != 0:
                continue
            positions = self._positions() if positions is None else positions
            sizes_then = [-1 if number == axis else 1 for number in range(len(shape))]
            label = f"moec.batch.shape{len(self.graph.initializers)}"
            target = add_constant(self.graph, ir.tensor(np.array(sizes_then, np.int64)), label)
            moved = ir.node("Reshape", [positions, target], name=f"{value.name}.positions")
            cast = ir.node("Cast", [moved.outputs[0]], attributes={"to": value.dtype}, name=f"{value.name}.cast")
            for new, dtype in ((moved, ir.DataType.INT64), (cast, value.dtype)):
                (result,) = new.outputs
                result.name, result.shape, result.dtype = f"{new.name}.y", value.shape, dtype
                self.graph.insert_before(node, new)
            value.replace_all_uses_with(cast.outputs[0])

    def _positions(self) -> ir.Value:
        value = ir.Value(
            name=POSITIONS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, ir.SymbolicDim(self.tokens)])
        )
        self.graph.inputs.append(value)
        return value

    def _token_axis(self, value: ir.Value) -> int | None:
        """The only axis of a value that has more than one element, if it counts tokens."""
        shape = known_shape(value)
        axes = [] if shape is None else [axis for axis, size in enumerate(shape) if size != 1]
        return axes[0] if shape is not None and len(axes) == 1 and shape[axes[0]] == self.tokens else None


def _reasons_against(interface: Interface, roles: Roles, notes: Sequence[str]) -> Iterator[str]:
    """Reasons why inputs or states of a model cannot be those of a batch. ``notes``: remarks of its import."""
    if not interface.states:
        yield f"the model keeps no states; {'; '.join(notes) or 'compile it with its cache'}"
    specs = {spec.name: spec for spec in interface.inputs}
    for state in interface.states:
        if state.axis is None and specs[state.input].shape[:1] != roles.ids.shape[:1]:
            yield f"state {state} has no entry for each sequence"
    for spec in roles.asked:
        yield f"nothing tells input {spec.name!r} of each sequence"
    for name, (role, _) in roles.filled.items():
        if role in ("past", "total"):
            yield f"input {name!r} tells places in a cache with room"
    if isinstance(roles.ids.shape[0], int) and roles.ids.shape[0] != 1:
        yield f"the model is for {roles.ids.shape[0]} sequences side by side"


def _names(size: str) -> set[sympy.Symbol]:
    return {sizes.size(name) for name in size_names(size)}


def _renamed(size: int | ir.SymbolicDim, fixed: Mapping[sympy.Symbol, sympy.Expr]) -> int | ir.SymbolicDim:
    """A size with the fixed sizes in it put in their places."""
    before = sizes.expression(size)
    if before is None or before.free_symbols.isdisjoint(fixed):
        return size
    after = sympy.expand(before.subs(fixed))
    return int(after) if after.is_Integer else ir.SymbolicDim(str(after))
