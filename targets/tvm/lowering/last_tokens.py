"""Programs that can compute the logits of the last tokens alone.

The number of these tokens, ``wanted``, is a size of the program like any other; in a plain run it is the number of all
tokens. The inputs of the nodes of :mod:`moec.ir.last_tokens` are cut to the last ``wanted`` tokens, and everything that
these nodes compute follows from the cut inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.specs import LastTokens
from moec.ir.graphs import is_op
from moec.ir.last_tokens import TokenWise, frontier, logits_of, named_length, passed_by, token_wise

if TYPE_CHECKING:
    from moec.targets.tvm.lowering.graph_values import GraphValues

LENGTH_AXIS = 1


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """Plan for the logits of the last ``wanted`` tokens.

    ``spec``: the description for the runtime. ``nodes``: nodes that compute the last tokens alone. ``cut``: values that
    they read from other nodes. ``passed_by``: nodes whose results nothing reads then. ``rows``: numbers of the tokens
    to compute instead of the last ones, int64[wanted]."""

    spec: LastTokens
    nodes: TokenWise
    cut: frozenset[ir.Value]
    passed_by: frozenset[ir.Node]
    wanted: tirx.Var
    rows: relax.Var | None = None
    _taken: dict[ir.Value, relax.Expr] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(model: ir.Model, count: tirx.Var, rows: relax.Var | None = None) -> Narrowing | None:
        """The plan of a model with logits of each of its tokens; None for any other."""
        candidates = logits_of(model)
        if len(candidates) != 1:
            return None
        (logits, product), graph = candidates[0], model.graph
        ids, nodes = named_length(graph, logits), token_wise(graph, logits)
        if ids is None or product not in nodes:
            return None
        spec = LastTokens(str(logits.name), str(ids.name))
        return Narrowing(spec, nodes, frozenset(frontier(nodes)), frozenset(passed_by(nodes)), count, rows)

    def convert(self, lowering: GraphValues, node: ir.Node, converted: Any) -> Any:
        """The result of a node for the last tokens, by its converter ``converted``; a Reshape only gets other sizes."""
        operands = self.nodes[node]
        read = [value for value in operands if value in self.cut]
        with lowering.standing_for({value: self._last_of(lowering, value) for value in read}):
            return self._reshaped(lowering, node) if is_op(node, "Reshape") else converted(lowering, node)

    def _last_of(self, lowering: GraphValues, value: ir.Value) -> relax.Expr:
        if value not in self._taken:
            tensor, count = lowering.tensor(value), self.wanted
            batch, length, width = lowering.dimensions(value)
            if self.rows is not None:
                self._taken[value] = self._chosen(lowering, tensor, [batch, count, width])
                return self._taken[value]
            first = length - count

            def last(tokens: te.Tensor) -> te.Tensor:
                return te.compute((batch, count, width), lambda b, t, i: tokens(b, first + t, i), name="last_tokens")

            enough = lowering.require(count <= length, f"there are fewer tokens in {value.name!r}", "as many as wanted")
            self._taken[value] = lowering.compute(last, [tensor], "last_tokens", enough)[0]
        return self._taken[value]

    def _chosen(self, lowering: GraphValues, tensor: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
        """The tokens of :attr:`rows`, which has numbers of tokens that there are."""

        def chosen(tokens: te.Tensor, rows: te.Tensor) -> te.Tensor:
            def element(b: tirx.Expr, t: tirx.Expr, i: tirx.Expr) -> tirx.Expr:
                last = tokens.shape[1] - 1
                return tokens(b, tirx.max(tirx.min(rows(t), last), tirx.IntImm("int64", 0)), i)

            return te.compute(shape, element, name="chosen_tokens")

        return lowering.compute(chosen, [tensor, self.rows], "chosen_tokens")[0]

    def _reshaped(self, lowering: GraphValues, node: ir.Node) -> relax.Expr:
        tokens, shape = self.nodes[node][0], node.outputs[0].shape
        assert shape is not None
        sizes = lowering.dimensions(tokens)
        batch = next(lowering.dimensions(value)[0] for value in self._taken)
        rows = [lowering.sizes.simplify(batch * self.wanted)] if len(shape) == 2 else [batch, self.wanted]
        return lowering.reshape(lowering.tensor(tokens), [*rows, sizes[-1]])
