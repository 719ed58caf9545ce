"""Proof that the graph of a batch computes each token alone (:mod:`moec.compiling.batches`).

The rules of operators for sequences (:mod:`moec.ir.sequence_rules`) say along which axis a value has one entry for each
token; attention, recurrences and convolutions read states of one sequence for each of its tokens. States that each run
replaces are followed by the same rules, with sequences in the place of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.common.specs import SEQUENCES, State
from moec.compiling.batch_states import BatchConvolution
from moec.ir.dialect import is_moec
from moec.ir.graphs import is_op
from moec.ir.masks.rules import elements
from moec.ir.masks.visibility import uses_all_keys
from moec.ir.sequence_cuts import SAME, SIZES, SequenceCut, SizeNumbers, Use, known_shape, size_names
from moec.ir.sequence_rules import cut_of_results
from moec.ir.states import ATTENTION_CACHES

_MASK = 3
_ENTRY = SequenceCut("cut", 0)
_TOKENS = SequenceCut("cut", 1)
"""Of rows [1, tokens, channels]."""
_CHANNELS = SequenceCut("cut", 2)
"""Of rows [1, channels, tokens]."""


@dataclasses.dataclass(frozen=True)
class BatchProof:
    """Proof that each token is computed alone, except that attention reads the cache of its sequence.

    ``cuts``: how values are cut into tokens. ``held``: states, before and after the new tokens. ``lengths``: numbers
    that follow from the length of a state. ``columns``: the first columns of states, which are values where the states
    are keys (latents). ``entries``: how states that each run replaces, and what is made of them,
    are cut into sequences. ``convolutions``: those that lead to a node of theirs."""

    graph: ir.Graph
    states: Sequence[State]
    sizes: SizeNumbers
    cuts: dict[ir.Value, SequenceCut]
    held: set[ir.Value]
    lengths: set[ir.Value]
    columns: set[ir.Value]
    entries: dict[ir.Value, SequenceCut]
    entry_sizes: SizeNumbers
    convolutions: Mapping[ir.Node, BatchConvolution]

    @staticmethod
    def of(
        graph: ir.Graph, tokens: str, states: Sequence[State], convolutions: Sequence[BatchConvolution]
    ) -> BatchProof:
        """``tokens``: named size of the new tokens."""
        axes = {state.input: state.axis for state in states}
        past = {value for value in graph.inputs if axes.get(value.name or "") is not None}
        entries = {value: _ENTRY for value in graph.inputs if value.name in axes and value not in past}
        names = {name for value in graph.inputs for size in known_shape(value) or () for name in size_names(size)}
        cuts = {
            value: SequenceCut("cut", (known_shape(value) or []).index(tokens))
            for value in graph.inputs
            if value not in past and value not in entries and tokens in (known_shape(value) or [])
        }
        of_nodes = {node: convolution for convolution in convolutions for node in convolution.nodes}
        of_tokens, of_sequences = (SizeNumbers({count}, names) for count in (tokens, SEQUENCES))
        return BatchProof(graph, states, of_tokens, cuts, past, set(), set(), entries, of_sequences, of_nodes)

    def check(self, logits_name: str) -> None:
        """Raise UnsupportedError for a node that may combine tokens or states of different sequences. Other outputs
        than the logits and states are gone afterwards."""
        for node in self.graph:
            reads = {value for value in node.inputs if value is not None}
            if node in self.convolutions:
                self._check_convolution(node, self.convolutions[node])
                continue
            if not reads.isdisjoint(self.entries):
                self._check_entries(node)
                continue
            if not reads.isdisjoint(self.held | self.lengths | self.columns):
                self._check_reader(node)
                continue
            operands = [SAME if value is None else self.cuts.get(value, SAME) for value in node.inputs]
            cut: SequenceCut | None = SAME
            if any(operand != SAME for operand in operands):
                use = Use(node, operands, self.sizes)
                cut = _rotated(use) if is_op(node, "RotaryEmbedding") else cut_of_results(use)
            if cut is None:
                raise refusal(node, "it may combine tokens of different sequences")
            self.cuts.update(dict.fromkeys(node.outputs, cut))
        outputs = {str(value.name): value for value in self.graph.outputs}
        logits = outputs[logits_name]
        if self.cuts.get(logits) != SequenceCut("cut", 1):
            raise UnsupportedError(f"no batches of sequences: output {logits.name!r} has not one entry for each token")
        for state in self.states:
            if state.axis is None and self.entries.get(outputs[state.output]) != _ENTRY:
                raise UnsupportedError(
                    f"no batches of sequences: output {state.output!r} is not known to follow from each sequence alone"
                )
        kept = [logits, *(outputs[state.output] for state in self.states)]
        self.graph.outputs[:] = kept

    def _check_convolution(self, node: ir.Node, convolution: BatchConvolution) -> None:
        """Check what a convolution reads; its places keep sequences apart."""
        is_separate = all(self._is_same(value) for value in convolution.operands)
        if self.entries.get(convolution.past) != _ENTRY or not is_separate:
            raise refusal(node, "it may combine states of different sequences")
        if self.cuts.get(convolution.x) != _CHANNELS:
            raise refusal(node, "it appends to a state what is not one entry for each token")
        self.cuts.update(dict.fromkeys(convolution.results, _CHANNELS))
        self.entries.update(dict.fromkeys(convolution.afters, _ENTRY))

    def _is_same(self, value: ir.Value | None) -> bool:
        """Whether a value depends neither on tokens nor on states."""
        is_cut = value in self.entries or value in self.held or value in self.lengths or value in self.columns
        return value is None or (not is_cut and self.cuts.get(value, SAME) == SAME)

    def _check_entries(self, node: ir.Node) -> None:
        """Check a node that reads states that each run replaces, or what was made of them."""
        if is_op(node, "LinearAttention"):
            self._check_recurrence(node)
            return
        others = [value for value in node.inputs if value is not None and value not in self.entries]
        operands = [SAME if value is None else self.entries.get(value, SAME) for value in node.inputs]
        is_separate = all(self._is_same(value) for value in others)
        cut = cut_of_results(Use(node, operands, self.entry_sizes)) if is_separate else None
        if cut is None:
            raise refusal(node, "it may combine states of different sequences")
        self.entries.update(dict.fromkeys(node.outputs, cut))

    def _check_recurrence(self, node: ir.Node) -> None:
        query, key, value, state, *gates = node.inputs
        if state is None or self.entries.get(state) != _ENTRY:
            raise refusal(node, "its state is not one for each sequence")
        if any(self.cuts.get(operand) != _TOKENS for operand in (query, key, value, *gates) if operand is not None):
            raise refusal(node, "its operands are not one entry for each token")
        result, after = node.outputs
        self.cuts[result], self.entries[after] = _TOKENS, _ENTRY

    def _check_reader(self, node: ir.Node) -> None:
        """Check a node that reads a state, or numbers that follow from its length."""
        if is_op(node, "Attention"):
            self._check_attention(node)
        elif is_op(node, "Concat") and len(node.inputs) == 2 and node.inputs[0] in self.held:
            self._check_new(node, node.inputs[1], node.attributes.get_int("axis", 0))
            self.held.update(node.outputs)
        elif (is_op(node, "Cast") or is_moec(node, "RoundRows")) and node.inputs[0] in self.held:
            self.held.update(node.outputs)
        elif is_op(node, "Split") and node.inputs[0] in self.held and _is_of_columns(node):
            self.columns.update(node.outputs)
        elif self._is_length(node):
            self.lengths.update(node.outputs)
        else:
            raise refusal(node, "it reads the state of all tokens, and is no attention over a cache")

    def _is_length(self, node: ir.Node) -> bool:
        """Whether a node computes numbers from the length of a state, and at most from the number of tokens."""
        others = [value for value in node.inputs if value is not None and value not in self.lengths]
        is_size = is_op(node, "Shape") or not any(value in self.held or value in self.columns for value in others)
        return is_size and (
            is_op(node, "Shape") or all(self.cuts.get(value, SAME) in (SAME, SIZES) for value in others)
        )

    def _check_new(self, node: ir.Node, value: ir.Value | None, axis: int) -> None:
        shape = known_shape(value)
        is_new = (
            value is not None and shape is not None and self.cuts.get(value) == SequenceCut("cut", axis % len(shape))
        )
        if not is_new:
            raise refusal(node, "it appends to a state what is not one entry for each token")

    def _are_columns_of(self, value: ir.Value | None, key: ir.Value) -> bool:
        split = None if value not in self.columns or value is None else value.producer()
        return split is not None and split.inputs[0] is key

    def _check_attention(self, node: ir.Node) -> None:
        query, key, value, mask, past, past_value, lengths = (*node.inputs, *[None] * 7)[:7]
        rank = len(known_shape(query) or [])
        token_axis = SequenceCut("cut", rank - 2 if rank == 4 else 1)
        if rank not in (3, 4) or query is None or self.cuts.get(query) != token_axis:
            raise refusal(node, "its queries are not one for each token")
        if past is not None and past in self.held and past_value in self.held:
            for operand in (key, value):
                self._check_new(node, operand, token_axis.axis)
            self.held.update(output for output in node.outputs if output.index() in ATTENTION_CACHES)
        elif past is not None or key not in self.held or not (value in self.held or self._are_columns_of(value, key)):
            raise refusal(node, "its keys and values are no cache with the new tokens appended")
        if mask is not None or not node.attributes.get_int("is_causal", 0):
            raise refusal(node, "its queries are not known to be in the causal order")
        if lengths is not None and not uses_all_keys(node, elements()):
            raise refusal(node, "it is told how many keys are in use")
        self.cuts[node.outputs[0]] = token_axis


def _is_of_columns(split: ir.Node) -> bool:
    shape = known_shape(split.inputs[0])
    return shape is not None and split.attributes.get_int("axis", 0) in (-1, len(shape) - 1)


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


def refusal(node: ir.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(f"no batches of sequences: node {node_name(node)!r} ({node.op_type}): {reason}")
