"""The float form of a MoE block, in one layout for all graphs: it is quantised, and integers are compared with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.ir import semantics
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.hls.design.normalization import FloatNorm, stream_scale_for
from moec.targets.hls.moe.stored_steps import StoredSteps

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class FloatBlock:
    """A router and its experts, all in float32.

    - ``router`` [E, d], ``router_bias`` [E]; ``correction_bias`` [E] is added to scores for the choice only, or None.
    - ``up`` and ``gate`` [E, f, d] with biases [E, f], ``down`` [E, d, f] with biases [E, d]. ``gate`` and
      ``gate_bias`` are None where experts are not gated.
    - ``routing`` and ``experts`` hold all else, except that layouts in them no longer apply.
    - ``shared``: so many experts, the last ones, see every token with weight 1. In a dense feed-forward layer all are
      shared, and ``router`` is [0, d].
    - ``stored``: scales of weights that are integers already.
    - ``norm``: with one, tokens are a residual stream, which is normalised first, and added to the experts' sum.
    """

    name: str
    routing: RouteSpec
    experts: ExpertsSpec
    router: Array
    router_bias: Array
    correction_bias: Array | None
    up: Array
    up_bias: Array
    gate: Array | None
    gate_bias: Array | None
    down: Array
    down_bias: Array
    shared: int = 0
    norm: FloatNorm | None = None
    stored: StoredSteps | None = None

    @property
    def width(self) -> int:
        return int(self.router.shape[1])

    @property
    def hidden(self) -> int:
        return int(self.up.shape[1])

    @property
    def count(self) -> int:
        """The number of experts that the router chooses among."""
        return len(self.up) - self.shared

    def run(self, tokens: Array) -> FloatResults:
        """Run tokens [T, d] through the block; returns its output and all tensors in between."""
        residual, tokens = tokens, self._inputs(tokens)
        logits = self._logits(tokens)
        gates, chosen = self._routed(logits)
        output = np.zeros((len(tokens), self.width), np.float32)
        parts = []
        for expert, rows, slots in semantics.pairs_by_expert(chosen):
            parts.append(self._expert(expert, tokens[rows]))
            output[rows] += gates[rows, slots, None] * parts[-1][-1]
        for expert in range(self.count, self.count + self.shared):
            parts.append(self._expert(expert, tokens))
            output += parts[-1][-1]
        ups, gates_in, hiddens, results = zip(*parts, strict=True) if parts else ((), (), (), ())
        joined = None if self.gate is None else _joined(gates_in, self.hidden)
        if self.norm is not None:
            output += residual
        return FloatResults(
            tokens, logits, gates, chosen, _joined(ups, self.hidden), joined, _joined(hiddens, self.hidden),
            _joined(results, self.width), output,
        )  # fmt: skip

    def chosen(self, tokens: Array) -> Array:
        """The chosen experts [T, k] of tokens [T, d]."""
        return self._routed(self._logits(self._inputs(tokens)))[1]

    def undecided(self, tokens: Array, tie: float, rounding: float, most: float) -> Array:
        """Whether small errors of logits change the routing of tokens [T, d]: bool [T].

        True for a token if errors of ``tie`` change the experts it chooses, or errors of ``rounding`` change a gate by
        more than ``most``. Errors are parts of the token's largest logit, or of 1 if that is less, since scores are
        rounded too."""
        logits = self._logits(self._inputs(tokens))
        gates, chosen = self._routed(logits)
        largest = np.abs(logits).max(axis=1, keepdims=True, initial=1.0)
        others, best = np.ones_like(logits), np.zeros_like(logits)
        np.put_along_axis(others, chosen, 0, axis=1)
        np.put_along_axis(best, chosen[:, :1], 1, axis=1)
        _, nudged = self._routed(logits + tie * largest * others)
        weighed, _ = self._routed(logits + rounding * largest * best)
        is_near = (np.sort(nudged) != np.sort(chosen)).any(axis=1)
        return is_near | (np.abs(np.sort(weighed) - np.sort(gates)) > most).any(axis=1)

    def _inputs(self, tokens: Array) -> Array:
        return tokens if self.norm is None else self.norm.run(tokens)

    def _logits(self, inputs: Array) -> Array:
        return inputs @ self.router.T + self.router_bias

    def _routed(self, logits: Array) -> tuple[Array, Array]:
        """Gates and chosen experts, [T, k] each."""
        if self.count:
            return semantics.route(self.routing, logits, self.correction_bias)
        return np.zeros((len(logits), 0), np.float32), np.zeros((len(logits), 0), np.int32)

    def scaled(self, factors: Array) -> FloatBlock:
        """The block with its results multiplied by ``factors`` [d]. Stored integers allow only factors of 1."""
        down, bias = self.down * factors[:, None], self.down_bias * factors
        return dataclasses.replace(self, down=down, down_bias=bias)

    def needed_scale(self, tokens: Array) -> float | None:
        """The smallest scale of the residual stream with which its tokens [T, d] and the block's results fit; None
        without a norm."""
        if self.norm is None:
            return None
        seen = self.run(tokens)
        return stream_scale_for(tokens, seen.output, seen.results * self.routing.scale)

    def _expert(self, expert: int, rows: Array) -> tuple[Array, Array | None, Array, Array]:
        """Up, gate, hidden units and results of one expert on its rows."""
        up = rows @ self.up[expert].T + self.up_bias[expert]
        gate = None
        if self.gate is not None and self.gate_bias is not None:
            gate = rows @ self.gate[expert].T + self.gate_bias[expert]
        hidden = semantics.activated(self.experts, gate, up)
        return up, gate, hidden, hidden @ self.down[expert].T + self.down_bias[expert]


@dataclasses.dataclass(frozen=True)
class FloatResults:
    """Tensors of a block on T tokens with P pairs of token and expert.

    - Per token: ``inputs`` [T, d], normalised if there is a norm; ``logits`` [T, E]; ``gates`` and ``chosen`` [T, k];
      ``output`` [T, d].
    - Per pair, by expert and then by token: ``up``, ``gate`` and ``hidden`` [P, f], ``results`` [P, d].
    """

    inputs: Array
    logits: Array
    gates: Array
    chosen: Array
    up: Array
    gate: Array | None
    hidden: Array
    results: Array
    output: Array


def _joined(parts: Any, columns: int) -> Array:
    return np.concatenate(parts) if parts else np.zeros((0, columns), np.float32)
