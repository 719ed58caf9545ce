"""Reference semantics of the moec operators: plain numpy functions, written for clarity and not for speed.

They follow :class:`~moec.ir.dialect.RouteSpec` and :class:`~moec.ir.dialect.ExpertsSpec` step by step. Every pass and
every kernel is checked against them. All of them compute in the dtype of ``x`` (or of the logits), unless ``dtype`` is
given. Floats narrower than 32 bits are computed in float32 and the result is rounded to them.

In every selection equal scores go to the lower id (or the lower token), and a NaN score counts as -inf.
Sizes: T tokens, d hidden size, E routed experts, k experts per token, f intermediate size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from moec.ir.dialect import Activation, ExpertsSpec, LinearSpec, ProductSpec, RouteSpec
from moec.ir.products import product, rounded_rows
from moec.ir.scores import LOGITS, Primitives, elementwise_scores

Array = np.ndarray[Any, Any]


class Stack(Protocol):
    """Weights of all experts: an array [E,...], or an object that returns the weights of one expert at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, expert: Any, /) -> Array: ...


def silently(function: Callable[..., Any]) -> Callable[..., Any]:
    """Suppress numpy's warnings about infinities and NaN in the data, which are the caller's business."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments, **keywords)

    return wrapper


def compute_dtype(result: np.dtype[Any]) -> np.dtype[Any]:
    """float32 for narrow floats (bfloat16 has no numpy arithmetic of its own), otherwise the type itself."""
    return np.dtype(np.float32) if result.itemsize < 4 else result


def softmax(x: Array, axis: int = -1) -> Array:
    """Softmax over ``axis``, shifted by the maximum so that no exponential overflows."""
    if x.size == 0:
        return x
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow for large negative x."""
    smaller = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, smaller) / (1 + smaller)


def erf(x: Array) -> Array:
    """The error function at double precision, in the dtype of x."""
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _identity(x: Array) -> Array:
    return x


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x / np.sqrt(x.dtype.type(2))))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(x.dtype.type(2 / np.pi)) * (x + 0.044715 * x**3)))


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, x.dtype.type(0))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": _relu,
    "relu2": lambda x: np.square(_relu(x)),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "identity": _identity,
}
"""All activations except silu, the only one that depends on ``alpha``."""

SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    **elementwise_scores(Primitives(sigmoid, _softplus, np.sqrt, _relu)),
    **dict.fromkeys(LOGITS, _identity),
}
"""Scores as functions of the logits; those named ``_topk`` become a softmax or a sigmoid of the selected ones."""


def _largest(scores: Array, count: int, axis: int = -1) -> Array:
    """Indices of the ``count`` largest entries along ``axis``, from large to small; ties and NaN as the module says."""
    comparable = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-comparable, axis=axis, kind="stable")
    return np.take(order, np.arange(count), axis=axis)


def _keep_best_groups(spec: RouteSpec, scores: Array) -> Array:
    """Scores with every group but the best ``groups_kept`` set to -inf."""
    T, E = scores.shape
    grouped = scores.reshape(T, spec.groups, E // spec.groups)
    if spec.group_score == "max":
        group_scores = grouped.max(axis=2)
    else:
        group_scores = -np.sort(-grouped, axis=2)[:, :, :2].sum(axis=2)
    kept = np.zeros((T, spec.groups), bool)
    np.put_along_axis(kept, _largest(group_scores, spec.groups_kept), True, axis=1)
    return np.where(kept[:, :, None], grouped, -np.inf).reshape(T, E)


def _select(spec: RouteSpec, choice: Array) -> Array:
    """Expert ids [T,k]; -1 where ``expert_choice`` leaves a pair out."""
    T, E = choice.shape
    if spec.selection == "topk":
        return _largest(choice, spec.k)
    ids = np.broadcast_to(np.arange(E), (T, E))
    if spec.selection == "all":
        return ids
    taken = np.zeros((T, E), bool)
    np.put_along_axis(taken, _largest(choice, min(spec.capacity, T), axis=0), True, axis=0)
    return np.where(taken, ids, -1)


def _sparse_mixer(spec: RouteSpec, logits: Array) -> tuple[Array, Array]:
    """Inference rule of the sparse mixer (PhiMoE, arXiv 2409.12136): each round takes the largest remaining logit.

    Its weight is the softmax over the logits within a relative distance of 2 * ``jitter`` from it. The distance is
    relative to |logit|, or to the maximum of the round if that is larger.
    """
    remaining = logits.copy()
    weights, ids = [], []
    for _ in range(spec.k):
        chosen = _largest(remaining, 1)
        best = np.take_along_axis(remaining, chosen, axis=1)
        distance = (best - logits) / np.maximum(np.abs(logits), best)
        near = softmax(np.where(distance > 2 * spec.jitter, -np.inf, remaining))
        weights.append(np.take_along_axis(near, chosen, axis=1))
        ids.append(chosen)
        np.put_along_axis(remaining, chosen, -np.inf, axis=1)
    return np.concatenate(weights, axis=1), np.concatenate(ids, axis=1)


def _weights_of_all(spec: RouteSpec, scores: Array, first: int) -> Array:
    """Weights of all experts by the scores [E] of a token, up to a factor that all share. ``first``: the expert that
    was selected first."""
    if spec.score == "softmax_topk":
        return np.exp(scores - scores[first])
    return sigmoid(scores) if spec.score == "sigmoid_topk" else scores


def _give_way(spec: RouteSpec, ids: Array, scores: Array, choice: Array, tolerance: Array) -> Array:
    """Replace selected experts that have a tolerance by experts without one; return the ids [T,k]."""
    ids = ids.copy()
    for chosen, of_token, by in zip(ids, scores, choice, strict=True):
        weights = _weights_of_all(spec, of_token, chosen[0])
        order = [expert for expert in _largest(by, by.size) if by[expert] > -np.inf and not tolerance[expert] > 0]
        for slot in range(spec.k - 1, 0, -1):
            expert = chosen[slot]
            other = next((other for other in order if other not in chosen), None)
            if other is not None and tolerance[expert] > 0:
                enough = weights[expert] * (weights.dtype.type(1) - tolerance[expert])
                chosen[slot] = other if weights[other] >= enough else expert
    return ids


def _scores_at_selected(
    spec: RouteSpec, logits: Array, correction_bias: Array | None, tolerance: Array | None
) -> tuple[Array, Array]:
    """Steps 1 to 3: the score of every selected expert, and its id."""
    if spec.score == "sparsemixer":
        return _sparse_mixer(spec, logits)
    scores = SCORES[spec.score](logits)
    choice = scores if correction_bias is None else scores + correction_bias
    if spec.groups > 1:
        choice = _keep_best_groups(spec, choice)
    ids = _select(spec, choice)
    if tolerance is not None:
        ids = _give_way(spec, ids, scores, choice, tolerance)
    weights = np.take_along_axis(scores, np.maximum(ids, 0), axis=1)
    if spec.score == "softmax_topk":
        weights = softmax(np.where(ids < 0, -np.inf, weights))
    elif spec.score == "sigmoid_topk":
        weights = sigmoid(weights)
    return weights, ids


def _beyond_capacity(capacity: int, ids: Array) -> Array:
    """Pairs [T,k] beyond their expert's capacity; first choices of all tokens are served before second choices."""
    in_order = ids.T.ravel()
    full = np.zeros(in_order.shape, bool)
    for expert in np.unique(in_order[in_order >= 0]):
        full[np.flatnonzero(in_order == expert)[capacity:]] = True
    return full.reshape(ids.T.shape).T


def _below_largest(share: float, weights: Array) -> Array:
    """Weights [T,k] with a magnitude below ``share`` times the largest of their token."""
    magnitudes = np.abs(weights)
    largest = np.where(np.isnan(magnitudes), 0, magnitudes).max(axis=1, keepdims=True, initial=0)
    return magnitudes < magnitudes.dtype.type(share) * largest


@silently
def route(
    spec: RouteSpec,
    logits: Array,
    correction_bias: Array | None = None,
    tolerance: Array | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Array]:
    """``moec.Route``: logits [T,E], correction_bias [E], tolerance [E] → weights [T,k], experts [T,k] (int32, -1
    dropped).

    A weight that is not greater than ``threshold`` is dropped, a NaN too. The comments number the steps of RouteSpec.
    """
    result_dtype = np.dtype(dtype or logits.dtype)
    compute = compute_dtype(result_dtype)
    bias, loss = (None if values is None else values.astype(compute) for values in (correction_bias, tolerance))
    weights, ids = _scores_at_selected(spec, logits.astype(compute), bias, loss)  # 1, 2, 3
    if spec.threshold is not None:  # 4
        ids = np.where(weights > spec.threshold, ids, -1)
    weights = np.where(ids < 0, 0, weights)
    if spec.relative_threshold > 0:
        ids = np.where(_below_largest(spec.relative_threshold, weights), -1, ids)
        weights = np.where(ids < 0, 0, weights)
    if spec.normalize:  # 5
        total = weights.sum(axis=1, keepdims=True) + spec.normalize_epsilon
        weights = weights / (np.maximum(total, spec.normalize_floor) if spec.normalize_floor > 0 else total)
    weights = weights * spec.scale  # 6
    if spec.capacity > 0 and spec.selection == "topk":  # 7
        ids = np.where(_beyond_capacity(spec.capacity, ids), -1, ids)
    return np.where(ids < 0, 0, weights).astype(result_dtype), ids.astype(np.int32)


def project(spec: ProductSpec, rows: Array, weight: Array, bias: Array | None, transposed: bool) -> Array:
    projected = product(rounded_rows(spec, rows), weight if transposed else weight.T)
    return projected if bias is None else projected + bias.astype(rows.dtype)


def _activate(activation: Activation, x: Array, alpha: float = 1.0) -> Array:
    return x * sigmoid(alpha * x) if activation == "silu" else ACTIVATIONS[activation](x)


def projections_in(spec: ExpertsSpec, rows: Array, weights: Mapping[str, Array | None]) -> tuple[Array | None, Array]:
    """Gate (None without one) and up projection [n,f] of rows [n,d] by one expert; ``weights`` holds its slices under
    the names of ``EXPERT_WEIGHTS``."""
    up, gate = weights["up"], weights["gate"]
    assert up is not None
    projected = project(spec, rows, up, weights["up_bias"], spec.up_transposed)
    if not spec.gated:
        return None, projected
    if spec.gate_layout == "separate":
        assert gate is not None
        return project(spec, rows, gate, weights["gate_bias"], spec.up_transposed), projected
    return spec.gate_and_up(projected)


def activated(spec: ExpertsSpec, gate: Array | None, up: Array) -> Array:
    """Input [n,f] of the down projection."""
    if gate is None:
        return _activate(spec.activation, up, spec.alpha)
    if spec.limit > 0:
        gate, up = np.minimum(gate, spec.limit), np.clip(up, -spec.limit, spec.limit)
    return _activate(spec.activation, gate, spec.alpha) * (up + spec.up_offset)


def limited(spec: ExpertsSpec, y: Array) -> Array:
    """Output of an expert: the result of its down projection, clamped to ``output_limit``."""
    return np.clip(y, -spec.output_limit, spec.output_limit) if spec.output_limit > 0 else y


def _expert(spec: ExpertsSpec, rows: Array, weights: Mapping[str, Array | None], hidden_size: int | None) -> Array:
    """One expert on rows [n,d]; ``weights`` as for :func:`projections_in`; a ``hidden_size`` of None means all f."""
    down = weights["down"]
    assert down is not None
    hidden = activated(spec, *projections_in(spec, rows, weights))
    if hidden_size is not None:
        hidden, down = hidden[:, :hidden_size], down[:hidden_size] if spec.down_transposed else down[:, :hidden_size]
    return limited(spec, project(spec, hidden, down, weights["down_bias"], spec.down_transposed))


def pairs_by_expert(ids: Array) -> Iterator[tuple[int, Array, Array]]:
    """Every expert in use, and the tokens and slots of the pairs [T,k] that go to it; pairs of id -1 go to none."""
    for expert in np.unique(ids[ids >= 0]):
        tokens, slots = np.nonzero(ids == expert)
        yield int(expert), tokens, slots


def check_ids(ids: Array, count: int) -> None:
    if ids.size and not -1 <= ids.min() <= ids.max() < count:
        raise ValueError(f"expert ids lie in [{ids.min()}, {ids.max()}]; expected -1 to {count - 1}")


@silently
def experts(
    spec: ExpertsSpec,
    x: Array,
    weights: Array,
    experts: Array,
    up: Stack,
    down: Stack,
    gate: Stack | None = None,
    up_bias: Stack | None = None,
    down_bias: Stack | None = None,
    gate_bias: Stack | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Array:
    """``moec.Experts``: x [T,d], weights [T,k], experts [T,k] and the experts' weights → y [T,d].

    Raises ValueError for an id that is neither -1, nor an expert, nor an identity expert.
    """
    result_dtype = np.dtype(dtype or x.dtype)
    compute = compute_dtype(result_dtype)
    x, weights = x.astype(compute), weights.astype(compute)
    E = up.shape[0]
    check_ids(experts, E + spec.identity_experts)
    stacked = {
        "up": up,
        "down": down,
        "gate": gate,
        "up_bias": up_bias,
        "down_bias": down_bias,
        "gate_bias": gate_bias,
    }
    width = down.shape[2 if spec.down_transposed else 1]
    pairs = np.zeros((*experts.shape, width), compute)
    for expert, tokens, slots in pairs_by_expert(experts):
        scale = weights[tokens, slots, None]
        rows = x[tokens] * scale if spec.weight_on_input else x[tokens]
        if expert < E:
            own = {name: None if w is None else w[expert] for name, w in stacked.items()}
            rows = _expert(spec, rows, own, spec.hidden_sizes[expert] if spec.hidden_sizes else None)
        pairs[tokens, slots] = rows if spec.weight_on_input else rows * scale
    return pairs.sum(axis=1).astype(result_dtype)


@silently
def linear(
    spec: LinearSpec, x: Array, weight: Array, bias: Array | None = None, *, dtype: DTypeLike | None = None
) -> Array:
    """``moec.Linear``: x [...,K], weight [N,K] (or [K,N] where transposed), bias [N] → y [...,N]."""
    result_dtype = np.dtype(dtype or x.dtype)
    rows = x.astype(compute_dtype(result_dtype)).reshape(-1, x.shape[-1])
    y = _activate(spec.activation, project(spec, rows, weight, bias, spec.transposed))
    return y.reshape(*x.shape[:-1], y.shape[-1]).astype(result_dtype)


def moe(
    route_spec: RouteSpec,
    experts_spec: ExpertsSpec,
    x: Array,
    logits: Array,
    correction_bias: Array | None,
    up: Array,
    down: Array,
    gate: Array | None = None,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    gate_bias: Array | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Array:
    """``moec.MoE``: route, then experts. Inputs in the order of the operator."""
    weights, ids = route(route_spec, logits, correction_bias, dtype=dtype)
    return experts(experts_spec, x, weights, ids, up, down, gate, up_bias, down_bias, gate_bias, dtype=dtype)
