"""Fitting of a router, so that its layer's outputs come closer to those that were measured before.

Weights of experts are a smooth function of the logits as long as the same experts are selected. The gradient, by
PyTorch, gives the direction in which logits should move. The step is the change of the router's matrix that comes
nearest to that on all tokens (least squares). It is taken only if, with the new selection, the error becomes smaller on
the tokens that it was computed from and on others that are held out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.errors import MoecError
from moec.ir import semantics
from moec.ir.dialect import RouteSpec
from moec.ir.scores import LOGITS, Primitives, elementwise_scores
from moec.passes.weights.sampled_layer import SampledLayer

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

_HELD_OUT = 4
"""Every fourth token is held out."""
_STEPS = 100
_FIRST_RATE, _LEAST_RATE = 0.25, 1e-3
"""Steps as shares of the size of the logits."""
_MOST_OUTPUTS = 1 << 26
"""Elements of all experts' outputs that are in memory at once: 512 MB."""
_PARTS = 1 << 16
_SURE = 2.0
"""Standard errors by which the error on held-out tokens has to be smaller in the end."""
_DAMPENING = 1.0
"""Share of the mean of the diagonal of the tokens' second moment that is added to the diagonal."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens [n,d], and the error of the layer as a function of all experts' weights g [n,S]: the sum over tokens of
    ``size`` - 2 g ``right`` + g ``square`` g, with ``right`` [n,S] and ``square`` [n,S,S]."""

    inputs: Array
    size: Array
    right: Array
    square: Array

    def some(self, chosen: Array) -> Tokens:
        return Tokens(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    def errors(self, gates: Array) -> Array:
        """Errors of the tokens: [n]."""
        return self.size + (gates * (self.gradient(gates) - self.right)).sum(axis=1)

    def gradient(self, gates: Array) -> Array:
        """Half of the gradient of the errors by the weights of the experts: [n,S]."""
        return np.einsum("nst,nt->ns", self.square, gates) - self.right


@dataclasses.dataclass(frozen=True)
class FittedRouter:
    """``weight`` [d,R] and ``bias`` [R], in float64."""

    weight: Array
    bias: Array | None

    def logits(self, tokens: Tokens) -> Array:
        return tokens.inputs @ self.weight + (0 if self.bias is None else self.bias)

    def moved(self, step: Array) -> FittedRouter:
        """The router after a ``step`` [d,R], or [d+1,R] with a bias."""
        own = len(self.weight)
        return FittedRouter(self.weight + step[:own], None if self.bias is None else self.bias + step[own])


class RouterFit:
    """The fit of one layer's router."""

    def __init__(self, sampled: SampledLayer) -> None:
        self._sampled, self._spec = sampled, sampled.experts.routing
        tokens = _tokens(sampled)
        held_out = np.arange(len(tokens.inputs)) % _HELD_OUT == _HELD_OUT - 1
        self.seen, self.held_out = tokens.some(~held_out), tokens.some(held_out)
        product = sampled.router
        bias = None if product.bias is None else product.bias.astype(np.float64)
        self.present = FittedRouter(product.weight.astype(np.float64), bias)
        self._with_ones = self.seen.inputs
        if bias is not None:
            self._with_ones = np.concatenate([self._with_ones, np.ones((len(self._with_ones), 1))], axis=1)
        kernel = self._with_ones @ self._with_ones.T
        mean_square = max(float(np.square(self._with_ones).mean()), 1e-12) if len(kernel) else 1.0
        kernel[np.diag_indices(len(kernel))] += _DAMPENING * mean_square * len(kernel)
        self._kernel = np.linalg.inv(kernel)

    def error(self, router: FittedRouter) -> float:
        """Relative error of the layer's output on held-out tokens, against the measured output."""
        size = float(self.held_out.size.sum())
        return math.sqrt(max(0.0, float(self._errors(router, self.held_out).sum())) / size) if size else 0.0

    def fitted(self) -> FittedRouter:
        """The router after all steps that made both errors smaller."""
        router, rate, direction = self.present, _FIRST_RATE, self._direction(self.present)
        errors = self._totals(router)
        for _ in range(_STEPS):
            if rate < _LEAST_RATE or not direction.any():
                break
            trial = router.moved(rate * direction)
            totals = self._totals(trial)
            if all(after < before for after, before in zip(totals, errors, strict=True)):
                router, errors, rate, direction = trial, totals, 2 * rate, self._direction(trial)
            else:
                rate /= 2
        return self._stored(router)

    def _stored(self, router: FittedRouter) -> FittedRouter:
        """The router with the numbers that the graph can store; the present router if the gain may be chance."""
        old = self.present
        bias = None if router.bias is None or old.bias is None else _in_units(router.bias, old.bias)
        weight, bias = self._sampled.router.rounded(_in_units(router.weight, old.weight), bias)
        stored = FittedRouter(weight.astype(np.float64), None if bias is None else bias.astype(np.float64))
        gain = self._errors(old, self.held_out) - self._errors(stored, self.held_out)
        chance = float(np.std(gain)) / math.sqrt(len(gain))
        return stored if gain.mean() > _SURE * chance else old

    def _totals(self, router: FittedRouter) -> list[float]:
        return [float(self._errors(router, tokens).sum()) for tokens in (self.seen, self.held_out)]

    def _errors(self, router: FittedRouter, tokens: Tokens) -> Array:
        return tokens.errors(self._gates(*self._routed(router, tokens)))

    def _routed(self, router: FittedRouter, tokens: Tokens) -> tuple[Array, Array]:
        return semantics.route(self._spec, router.logits(tokens), self._sampled.correction_bias)

    def _gates(self, weights: Array, ids: Array) -> Array:
        """The weights of all experts [n,S] from those of pairs [n,k]."""
        gates = np.zeros((len(ids), self.seen.right.shape[1] + 1))
        np.add.at(gates, (np.arange(len(ids))[:, None], self._sampled.numbered(ids)), weights)
        return gates[:, :-1]

    def _direction(self, router: FittedRouter) -> Array:
        """The step [d,R], or [d+1,R] with a bias, that lowers the error; it changes logits as much as they differ on
        average."""
        tokens, logits = self.seen, router.logits(self.seen)
        weights, ids = self._routed(router, tokens)
        by_expert = tokens.gradient(self._gates(weights, ids))
        by_expert = np.concatenate([by_expert, np.zeros((len(ids), 1))], axis=1)  # of what contributes nothing
        by_weight = np.take_along_axis(by_expert, self._sampled.numbered(ids) % by_expert.shape[1], axis=1)
        every = dataclasses.replace(self._spec, threshold=None, relative_threshold=0.0)
        chosen = semantics.route(every, logits, self._sampled.correction_bias)[1]
        by_logit = pulled_back(self._spec, logits, chosen, ids >= 0, by_weight)
        step = -self._with_ones.T @ (self._kernel @ by_logit)
        size = np.linalg.norm(self._with_ones @ step)
        return step * (np.linalg.norm(logits - logits.mean(axis=1, keepdims=True)) / size) if size > 0 else 0 * step


def _in_units(new: Array, old: Array) -> Array:
    """Round the change from the old numbers to multiples of a unit: its last bits differ from processor to
    processor."""
    unit = max(float(np.abs(old).max(initial=0)), 1e-12) / _PARTS
    return old + np.round((new - old) / unit) * unit


def pulled_back(spec: RouteSpec, logits: Array, chosen: Array, kept: Array, gradient: Array) -> Array:
    """Turn a ``gradient`` by the weights [n,k] of the experts ``chosen`` into the gradient by the logits [n,R]. Experts
    not ``kept`` were dropped. The selection is constant. Raises MoecError if PyTorch is not installed."""
    torch = import_torch()
    leaf = torch.tensor(logits, requires_grad=True)
    weights = _weights(spec, leaf, torch.tensor(chosen, dtype=torch.int64), torch.tensor(kept))
    (pulled,) = torch.autograd.grad(weights, leaf, torch.tensor(gradient))
    return np.nan_to_num(pulled.numpy())


def import_torch() -> Any:
    """Import PyTorch; raises MoecError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MoecError('tuning routers needs PyTorch: pip install "moec[torch]"') from error
    return torch


def _weights(spec: RouteSpec, logits: torch.Tensor, chosen: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Steps 1 and 4 to 6 of :class:`RouteSpec`, for a given selection."""
    weights = _SCORES[spec.score](logits).gather(1, chosen)
    if spec.score == "softmax_topk":
        weights = weights.softmax(1)
    elif spec.score == "sigmoid_topk":
        weights = weights.sigmoid()
    weights = weights * kept
    if spec.normalize:
        total = weights.sum(1, keepdim=True) + spec.normalize_epsilon
        weights = weights / (total.clamp(min=spec.normalize_floor) if spec.normalize_floor > 0 else total)
    return weights * spec.scale


def _softplus(logits: torch.Tensor) -> torch.Tensor:
    return logits.logaddexp(logits.new_zeros(()))


_PRIMITIVES = Primitives(
    lambda logits: logits.sigmoid(), _softplus, lambda scores: scores.sqrt(), lambda logits: logits.relu()
)
_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    **elementwise_scores(_PRIMITIVES),
    **dict.fromkeys(LOGITS, lambda logits: logits),
}
"""The scores of :data:`moec.ir.semantics.SCORES`; weights of others are not a function of the logits in one step."""


def why_not(sampled: SampledLayer) -> str | None:
    """The reason why a layer's router cannot be fitted; None if it can."""
    if sampled.experts.routing.score not in _SCORES:
        return f"weights by {sampled.experts.routing.score} are not followed"
    if sampled.experts.weights.spec.weight_on_input:
        return "its experts see their input times the weight"
    return None


def _tokens(sampled: SampledLayer) -> Tokens:
    """Errors as a function of the weights, without tokens for which an expert's output is not finite. A few tokens at a
    time, because all experts' outputs take much memory."""
    count = sampled.experts.stored + sampled.experts.identity
    at_once = max(1, _MOST_OUTPUTS // (count * sampled.outputs.shape[1]))
    portions = []
    for start in range(0, max(1, len(sampled.inputs)), at_once):
        inputs, targets = (array[start : start + at_once] for array in (sampled.inputs, sampled.outputs))
        outputs = np.stack([sampled.made_by(expert, inputs) for expert in range(count)], axis=1)
        finite = np.isfinite(outputs).all(axis=(1, 2))
        inputs, targets, outputs = inputs[finite], targets[finite], outputs[finite]
        size, right = np.square(targets).sum(axis=1), np.matmul(outputs, targets[:, :, None])[:, :, 0]
        portions.append((inputs, size, right, np.matmul(outputs, outputs.swapaxes(1, 2))))
    return Tokens(*map(np.concatenate, zip(*portions, strict=True)))
