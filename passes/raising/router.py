"""Search for the RouteSpec of a router: by trying, not by reading.

Every RouteSpec of a small grid, filled with the constants found in the router, runs on sample logits. Those that agree
with a pair of weights and expert ids (or with a dense matrix of weights) somewhere in the router are proposed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import RouteSpec
from moec.ir.scores import ELEMENTWISE
from moec.ir.semantics import route
from moec.passes.raising.block import MOST_TOKENS, Block
from moec.passes.raising.dataflow import Array

TOLERANCE = 1e-6
FIRST = 2
"""Rows that are compared with all views at once."""
MOST_GROUPINGS = 128
"""Largest number of pairs of group counts that are tried."""
COUNTS = frozenset({"CumSum", "Trilu"})
"""Operators that may count the tokens before one."""
COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
CLAMPS = frozenset({"Clip", "Max"})
SCORES = tuple(dict.fromkeys(["softmax", "softmax_topk", "sigmoid", "sigmoid_topk", *ELEMENTWISE, "identity"]))
"""Scores in the order in which they are tried."""


@dataclasses.dataclass(frozen=True)
class RoutingProposal:
    """A proposal: what the router does, and the correction bias [E] if it has one.

    ``places`` [...,E,C] are weights that the router, which stays as it is, gives tokens at each of an expert's places.
    Their sums over these [T,E] are what experts are chosen by, instead of the logits.
    """

    spec: RouteSpec
    correction_bias: ir.Value | None = None
    places: ir.Value | None = None

    def run(self, block: Block, logits: Array) -> tuple[Array, Array]:
        """Weights [T,k] in float64 and ids [T,k]."""
        bias = None if self.correction_bias is None else block.dataflow.array(self.correction_bias).reshape(-1)
        scores = logits if self.places is None else _sums(block, self.places, logits)
        return route(self.spec, scores, bias, dtype=np.float64)


def _sums(block: Block, places: ir.Value, logits: Array) -> Array:
    runs = block.values_on(np.ones((len(logits), block.d)), logits, [places])
    return np.concatenate([weights.sum(axis=-1).reshape(-1, block.E) for (weights,) in runs])[: len(logits)]


def propose_routings(block: Block) -> list[RoutingProposal]:
    """Routings that agree with the router on sample logits, those seen latest in the graph first, and of these
    those that agree on most far logits, too: far from zero a floor shows, and an epsilon."""
    capacities = _capacities(block)
    near = np.concatenate([sample_logits(block.E), _crowd(block.E, max(capacities))])
    logits = np.concatenate([near, far_logits(block.E)])
    step = block.row_step
    T = step if block.rows_are_fixed else -(-len(logits) // step) * step
    logits = np.resize(logits, (T, block.E))
    observed = _observe(block, logits)
    if not observed:
        return []
    scores_of: dict[RoutingProposal, tuple[float, int]] = {}
    by_k = {k: [view for view in observed if view.k == k] for k in {view.k for view in observed}}
    starts = {k: np.stack([view.mixture[:FIRST] for view in views]) for k, views in by_k.items()}
    for routing in _with_capacities(_grid(block, sorted(by_k)), capacities):
        rows = len(logits) if routing.spec.capacity else FIRST  # later tokens may take the room of earlier ones
        start = as_mixture(*routing.run(block, logits[:rows]), block.E)[:FIRST]
        likely = np.flatnonzero(_agree(starts[routing.spec.k], start).all(axis=1))
        if not likely.size:
            continue
        mixture = as_mixture(*routing.run(block, logits), block.E)
        for view in (by_k[routing.spec.k][place] for place in likely):
            agreeing = _agree(view.mixture, mixture)
            if agreeing[: len(near)].all():
                scores_of[routing] = max(scores_of.get(routing, (0, 0)), (view.position, int(agreeing.sum())))
    likeliest = sorted(scores_of, key=scores_of.__getitem__, reverse=True)
    return [routing for routing in likeliest if _agrees_on_low_groups(block, routing)]


def _agrees_on_low_groups(block: Block, routing: RoutingProposal) -> bool:
    """Whether experts of groups that are not kept are out: not if they have a score, such as 0, by which they are
    chosen where a correction bias makes those of others less."""
    if routing.spec.groups == 1 or routing.correction_bias is None:
        return True
    logits = low_groups(routing.spec, block.dataflow.array(routing.correction_bias).reshape(-1).astype(np.float64))
    step = max(block.row_step, 1)
    T = step if block.rows_are_fixed else -(-len(logits) // step) * step
    for first in range(0, len(logits), T):
        rows = np.resize(logits[first : first + T], (T, block.E))
        mixture = as_mixture(*routing.run(block, rows), block.E)
        views = (view for view in _observe(block, rows) if view.k == routing.spec.k)
        if not any(_agree(view.mixture, mixture).all() for view in views):
            return False
    return True


def low_groups(spec: RouteSpec, bias: Array) -> Array:
    """Logits [T,E] for which groups are kept of which one or two experts have no low score, beside groups whose weights
    are not small."""
    groups = bias.reshape(spec.groups, -1)
    kept = itertools.islice(itertools.combinations(range(spec.groups), spec.groups_kept), MOST_GROUPINGS)
    rows = []
    for chosen, others, count in itertools.product(kept, (-2.0, -4.0), (1, 2)):
        high = groups >= np.sort(groups, axis=1)[:, -count:][:, :1]
        row = np.full(groups.shape, others)
        row[list(chosen)] = np.where(high, 12.0, -30.0)[list(chosen)]
        rows.append(row.ravel())
    return np.stack(rows)


def sample_logits(E: int) -> Array:
    """Logits [T,E] that tell routers apart: ordinary ones, ties, all equal, and large negative ones."""
    random = np.random.default_rng(0)
    ordinary = random.normal(size=(2 * E + 48, E)) * 2
    ties = random.integers(0, 3, size=(8, E)).astype(float)
    return np.concatenate([ordinary, ties, np.zeros((1, E)), random.normal(size=(4, E)) - 7])


def far_logits(E: int) -> Array:
    """Logits [T,E] of other magnitudes than trained routers have."""
    random = np.random.default_rng(4)
    shifted = [random.normal(size=(2, E)) - shift for shift in (20, 45, 80, 300)]
    small = [np.abs(random.normal(size=(1, E))) * 10.0**-power for power in range(3, 31, 3)]
    return np.concatenate([*shifted, *small, random.normal(size=(48, E)) * 6])


def _crowd(E: int, capacity: int) -> Array:
    """Logits [T,E] in which more tokens than the capacity prefer one expert; none for a capacity of 0."""
    T = 2 * capacity + 2 if capacity else 0
    return np.random.default_rng(7).normal(size=(T, E)) + 6 * (np.arange(E) == E // 2)


def as_mixture(weights: Array, ids: Array, E: int) -> Array:
    """Weights [T,k] and ids [T,k] as a dense matrix [T,E]; ids of -1 are left out."""
    mixture = np.zeros((len(weights), E))
    tokens, slots = np.nonzero(ids >= 0)
    np.add.at(mixture, (tokens, ids[tokens, slots]), weights[tokens, slots])
    return mixture


def _agree(a: Array, b: Array) -> Array:
    """Flags of the rows in which a [...,T,E] and b [T,E] agree."""
    with np.errstate(all="ignore"):
        return np.all(np.abs(a - b) <= TOLERANCE * np.abs(b).max(axis=1, keepdims=True), axis=-1)


@dataclasses.dataclass(frozen=True)
class _View:
    """A mixture [T,E] of k experts that the router computes; ``position`` orders views by their place in the graph."""

    mixture: Array
    k: int
    position: float


def _observe(block: Block, logits: Array) -> list[_View]:
    nodes = block.router_nodes()
    beyond = (v for n in nodes if n.op_type == "NonZero" or _reads_weights(block, n) for v in n.outputs)
    dispatch = block.dataflow.dependents(beyond, nodes)
    values = [v for n in nodes for v in n.outputs if v not in dispatch and v.name]
    x = np.ones((len(logits), block.d))
    arrays = block.evaluate(x, logits, values)
    return list(_views([(v, a) for v, a in zip(values, arrays, strict=True) if a.size and a.ndim], len(logits), block))


def _reads_weights(block: Block, node: ir.Node) -> bool:
    """Whether a node reads a constant larger than anything a router needs but masks, such as weights per token."""
    dataflow = block.dataflow
    constants = (value for value in node.inputs if value is not None and dataflow.constant(value))
    large = [v for v in constants if np.prod(dataflow.shape(v), dtype=np.int64) > max(block.E**2, block.E * 8)]
    return not all(map(dataflow.is_mask, large))


def _views(computed: list[tuple[ir.Value, Array]], T: int, block: Block) -> Iterator[_View]:
    E, order = block.E, block.dataflow.order
    ids = [_rows(a, T, E) for _, a in computed if a.dtype.kind == "i" and a.size % T == 0 and a.size < T * E]
    ids = [a for a in ids if a.shape[1] and a.min() >= 0 and a.max() < E]
    for value, array in computed:
        producer = value.producer()
        if array.dtype.kind != "f" or array.size % T or producer is None:
            continue
        rows = _rows(array, T, E)
        for chosen in ids:
            if chosen.shape == rows.shape:
                yield _View(as_mixture(rows, chosen, E), chosen.shape[1], order[producer])
        if rows.shape[1] == E:
            k = int((rows != 0).sum(axis=1).max())
            if 0 < k < E:
                yield _View(rows, k, order[producer])


def _rows(array: Array, T: int, E: int) -> Array:
    """An array with n numbers for each token as [T,n], whether tokens are its first axes or, as [n,T], its last."""
    n = array.size // T
    turned = array.shape[0] == n != T and (n == E or array.shape[1:2] == (T,))
    return array.reshape(n, T).T if turned else array.reshape(T, n)


def _grid(block: Block, widths: list[int]) -> Iterator[RoutingProposal]:
    numbers = _numbers(block)
    biases = [None, *expert_vectors(block)]
    # the ids that a loop compares with are no scales, and as many as there are experts
    scales = [1.0, *(n for n in _numbers(block, floats_only=True) if n > 0 and n != 1)]
    guards: list[dict[str, Any]] = [{}, *({"normalize_epsilon": n} for n in numbers if 0 < n < 1e-3)]
    guards += [{"normalize_floor": n} for n in _numbers(block, CLAMPS | COMPARISONS) if n > 0]
    thresholds = [None, *(n for n in _numbers(block, COMPARISONS) if 0 < n < 1)]
    for k in widths:
        shapes = _group_options(block, k)
        for score, bias, groups, threshold in itertools.product(SCORES, biases, shapes, thresholds):
            for scale in scales:
                fields: dict[str, Any] = {"k": k, "score": score, "scale": scale, "threshold": threshold, **groups}
                yield RoutingProposal(RouteSpec(**fields), bias)
                for guard in guards if score != "softmax_topk" or threshold is not None else ():
                    yield RoutingProposal(RouteSpec(**fields, normalize=True, **guard), bias)
        if k <= 2:
            yield from (RoutingProposal(RouteSpec(k, "sparsemixer", jitter=n / 2)) for n in numbers if 0 < n < 1)


def _with_capacities(routings: Iterator[RoutingProposal], capacities: list[int]) -> Iterator[RoutingProposal]:
    for routing, capacity in itertools.product(routings, capacities):
        yield dataclasses.replace(routing, spec=dataclasses.replace(routing.spec, capacity=capacity))


def _capacities(block: Block) -> list[int]:
    """Possible capacities: 0 for none, and those that numbers of the router suggest, if it counts."""
    counts = [node for node in block.nodes if node.op_type in COUNTS and node.outputs[0] not in block.from_x]
    if not counts:
        return [0]
    places = {math.floor(number) + step for number in _numbers(block) for step in (-1, 0, 1)}
    return [0, *sorted(place for place in places if 0 < place <= MOST_TOKENS)]


def _numbers(block: Block, operators: frozenset[str] | None = None, *, floats_only: bool = False) -> list[float]:
    """Distinct scalar constants of the router, or of its nodes with these operators."""
    nodes = (node for node in block.router_nodes() if operators is None or node.op_type in operators)
    values = (v for node in nodes for v in node.inputs if not (floats_only and v and v.dtype and v.dtype.is_integer()))
    scalars = (block.dataflow.scalar(value) for value in values)
    return sorted({_shortest(s) for s in scalars if s is not None and np.isfinite(s)})


def _shortest(number: float) -> float:
    """The shortest decimal that is the same float32, where the number is one."""
    return float(str(np.float32(number))) if np.float32(number) == number else number


def expert_vectors(block: Block) -> list[ir.Value]:
    """Constants of the router with one number per expert: a correction bias, or a factor per expert."""
    dataflow = block.dataflow
    values = dict.fromkeys(v for node in block.router_nodes() for v in node.inputs if dataflow.constant(v))
    sized = [v for v in values if v is not None and math.prod(dataflow.shape(v)) == block.E]
    return [v for v in sized if dataflow.array(v).dtype.kind == "f"]


def _group_options(block: Block, k: int) -> list[dict[str, Any]]:
    """No groups, and every (number of groups, groups kept, score of a group) that constants of the router suggest, or
    rounds of ArgMax, each of which may keep one group."""
    dataflow, E = block.dataflow, block.E
    options: list[dict[str, Any]] = [{}]
    counts: set[int] = set()
    for node in block.router_nodes():
        if node.op_type == "Reshape" and node.inputs[1] is not None and dataflow.constant(node.inputs[1]):
            counts.update(
                int(size) for size in dataflow.array(node.inputs[1]).ravel() if 1 < size < E and E % size == 0
            )
    rounds = sum(node.op_type == "ArgMax" for node in block.router_nodes())
    kept = {*range(1, rounds + 1), *(int(n) for n in _numbers(block) if n == int(n))}
    for groups, groups_kept in itertools.product(sorted(counts), sorted(kept)):
        if groups_kept < groups and groups_kept * (E // groups) >= k:
            for group_score in ("max", "sum_top2") if E // groups >= 2 else ("max",):
                options.append({"groups": groups, "groups_kept": groups_kept, "group_score": group_score})
    return options
