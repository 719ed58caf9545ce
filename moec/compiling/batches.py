"""The model of a batch: the graph that computes tokens of several sequences of different lengths in one run.

Sequences of a batch (:mod:`moec.ir.batches`) lie one after the other along the axis of tokens. So every node has to
treat each token alone, except attention, which reads the cache of one sequence for each of its tokens. That is proved
node by node with the rules of operators for sequences (:mod:`moec.ir.sequence_rules`), with tokens in the place of
sequences; a node for which it is not proved is refused by its name.

1. There is one batch entry. No token is padding, so a mask of tokens that count becomes ones, and masks of attention
   are read again: what is left of them is the causal order, with or without a window.
2. A value that numbers the tokens from the length of the past on becomes an input, for each token has a past of its
   own.
3. The outputs are the logits and the states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import sympy

from moec.common.errors import InputError, UnsupportedError
from moec.common.names import node_name
from moec.common.specs import POSITIONS, State
from moec.compiling.model_inputs import ModelInputs
from moec.ir import sizes
from moec.ir.batches import SINKS, WINDOW, mark_batched
from moec.ir.dialect import is_moec
from moec.ir.graphs import add_constant, is_op
from moec.ir.masks.rules import elements
from moec.ir.masks.visibility import read_window, uses_all_keys
from moec.ir.sequence_cuts import SAME, SIZES, SequenceCut, SizeNumbers, Use, known_shape, size_names
from moec.ir.sequence_rules import cut_of_results
from moec.ir.sinks import sinks_of
from moec.ir.states import ATTENTION_CACHES, states_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.interface import Interface
from moec.runtime.roles import Roles, roles_of
from moec.targets.base import Made, Program, Target

_MASK = 3
_CLEANING = (
    "infer-shapes,fold-shapes,raise-masks,simplify,eliminate-common-subexpressions,remove-dead-nodes,infer-shapes"
)


def batched_model(model: ir.Model, interface: Interface) -> ir.Model:
    """Make the model of a batch of a language model after all passes. The model itself stays as it is.

    Raises UnsupportedError, naming what stands against it, for a model whose sequences cannot be batched.
    """
    copy = model.clone()
    batch = _BatchGraph.of(copy, interface)
    batch.fix_sizes()
    batch.see_all_tokens()
    batch.move_sinks()
    pipeline.run(copy, pipeline.parse(_CLEANING), Report())
    batch.read_windows()
    batch.take_positions()
    pipeline.run(copy, pipeline.parse("remove-dead-nodes,infer-shapes"), Report())
    _Proof.of(batch).check()
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
        reason = next(_reasons_against(interface, roles), None)
        lengths = {specs[state.input].shape[state.axis] for state in interface.states if state.axis is not None}
        tokens, past = roles.ids.shape[1], lengths.pop() if len(lengths) == 1 else None
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
        mask, state = self.input(self.roles.mask), self.states[0]
        assert state.axis is not None and mask.dtype is not None, "states without tokens are refused"
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
                raise _refusal(node, "its mask is not known to be the causal order, with or without a window")
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


def _reasons_against(interface: Interface, roles: Roles) -> Iterator[str]:
    """Reasons why inputs or states of a model cannot be those of a batch."""
    if not interface.states:
        yield "the model keeps no states; compile it with its cache"
    for state in interface.states:
        if state.axis is None:
            yield f"state {state} has no entry for each token"
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


@dataclasses.dataclass(frozen=True)
class _Proof:
    """Proof that each token is computed alone, except that attention reads the cache of its sequence.

    ``cuts``: how values are cut into tokens. ``held``: states, before and after the new tokens. ``lengths``: numbers
    that follow from the length of a state."""

    batch: _BatchGraph
    sizes: SizeNumbers
    cuts: dict[ir.Value, SequenceCut]
    held: set[ir.Value]
    lengths: set[ir.Value]

    @staticmethod
    def of(batch: _BatchGraph) -> _Proof:
        states = {state.input for state in batch.states}
        past = {value for value in batch.graph.inputs if value.name in states}
        names = {name for value in batch.graph.inputs for size in known_shape(value) or () for name in size_names(size)}
        cuts = {
            value: SequenceCut("cut", (known_shape(value) or []).index(batch.tokens))
            for value in batch.graph.inputs
            if value not in past and batch.tokens in (known_shape(value) or [])
        }
        return _Proof(batch, SizeNumbers({batch.tokens}, names), cuts, past, set())

    def check(self) -> None:
        """Raise UnsupportedError for a node that may combine tokens. Other outputs than logits and states are gone
        afterwards."""
        for node in self.batch.graph:
            reads = {value for value in node.inputs if value is not None}
            if not reads.isdisjoint(self.held | self.lengths):
                self._check_reader(node)
                continue
            operands = [SAME if value is None else self.cuts.get(value, SAME) for value in node.inputs]
            cut: SequenceCut | None = SAME
            if any(operand != SAME for operand in operands):
                use = Use(node, operands, self.sizes)
                cut = _rotated(use) if is_op(node, "RotaryEmbedding") else cut_of_results(use)
            if cut is None:
                raise _refusal(node, "it may combine tokens of different sequences")
            self.cuts.update(dict.fromkeys(node.outputs, cut))
        outputs = {str(value.name): value for value in self.batch.graph.outputs}
        logits = outputs[self.batch.roles.logits.name]
        if self.cuts.get(logits) != SequenceCut("cut", 1):
            raise UnsupportedError(f"no batches of sequences: output {logits.name!r} has not one entry for each token")
        kept = [logits, *(outputs[state.output] for state in self.batch.states)]
        self.batch.graph.outputs[:] = kept

    def _check_reader(self, node: ir.Node) -> None:
        """Check a node that reads a state, or numbers that follow from its length."""
        if is_op(node, "Attention"):
            self._check_attention(node)
        elif is_op(node, "Concat") and len(node.inputs) == 2 and node.inputs[0] in self.held:
            self._check_new(node, node.inputs[1], node.attributes.get_int("axis", 0))
            self.held.update(node.outputs)
        elif (is_op(node, "Cast") or is_moec(node, "RoundRows")) and node.inputs[0] in self.held:
            self.held.update(node.outputs)
        elif self._is_length(node):
            self.lengths.update(node.outputs)
        else:
            raise _refusal(node, "it reads the state of all tokens, and is no attention over a cache")

    def _is_length(self, node: ir.Node) -> bool:
        """Whether a node computes numbers from the length of a state, and at most from the number of tokens."""
        others = [value for value in node.inputs if value is not None and value not in self.lengths]
        is_size = is_op(node, "Shape") or not any(value in self.held for value in others)
        return is_size and (
            is_op(node, "Shape") or all(self.cuts.get(value, SAME) in (SAME, SIZES) for value in others)
        )

    def _check_new(self, node: ir.Node, value: ir.Value | None, axis: int) -> None:
        shape = known_shape(value)
        is_new = (
            value is not None and shape is not None and self.cuts.get(value) == SequenceCut("cut", axis % len(shape))
        )
        if not is_new:
            raise _refusal(node, "it appends to a state what is not one entry for each token")

    def _check_attention(self, node: ir.Node) -> None:
        query, key, value, mask, past, past_value, lengths = (*node.inputs, *[None] * 7)[:7]
        rank = len(known_shape(query) or [])
        token_axis = SequenceCut("cut", rank - 2 if rank == 4 else 1)
        if rank not in (3, 4) or query is None or self.cuts.get(query) != token_axis:
            raise _refusal(node, "its queries are not one for each token")
        if past is not None and past in self.held and past_value in self.held:
            for operand in (key, value):
                self._check_new(node, operand, token_axis.axis)
            self.held.update(output for output in node.outputs if output.index() in ATTENTION_CACHES)
        elif past is not None or key not in self.held or value not in self.held:
            raise _refusal(node, "its keys and values are no cache with the new tokens appended")
        if mask is not None or not node.attributes.get_int("is_causal", 0):
            raise _refusal(node, "its queries are not known to be in the causal order")
        if lengths is not None and not uses_all_keys(node, elements()):
            raise _refusal(node, "it is told how many keys are in use")
        self.cuts[node.outputs[0]] = token_axis


def _rotated(use: Use) -> SequenceCut | None:
    """Rows [batch, heads, tokens, size] or [batch, tokens, width] by tables of all positions and the positions
    [batch, tokens], or by tables [batch, tokens, half]."""
    rank = len(use.shape(0))
    own = SequenceCut("cut", 2 if rank == 4 else 1)
    others = [
        cut == SequenceCut("cut", 1) or (cut == SAME and len(use.shape(place)) == 2 and place < 3)
        for place, cut in enumerate(use.cuts)
        if place and place < len(use.node.inputs) and use.node.inputs[place] is not None
    ]
    return own if use.first == own and all(others) else None


def _refusal(node: ir.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(f"no batches of sequences: node {node_name(node)!r} ({node.op_type}): {reason}")
