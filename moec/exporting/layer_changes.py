"""Changes that passes made to a layer of experts, in terms of the layer that its source has.

A file stores one entry for each expert of every weight, bias and row of the router. After passes an entry is either
that of one of the source's experts, bit for bit, so that it can be copied, or a new one. Both are found by comparing
the layer with its state before the passes; the origins of its experts (:mod:`moec.ir.origins`) say what to compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec
from moec.ir.expert_ids import routing_of
from moec.ir.expert_weights import ExpertWeights
from moec.ir.origins import origins_of
from moec.ir.weight_operands import stored_weights, weight_inputs
from moec.ir.weights.encode import Table
from moec.ir.weights.levels import LEVELS
from moec.ir.weights.stored import StoredWeight, constant
from moec.passes.graph.columns import has_own_columns
from moec.passes.graph.router_product import RouterProduct, router_product

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class LayerState:
    """A layer of experts at one moment. ``count``: experts with weights. ``routed``: experts that the router knows;
    ``is_direct``: whether these are the former and identity experts, in this order. ``values``: the operands of the
    node that are stored weights. ``router``: the product that its logits are; None where they are something else;
    ``is_by_expert``: whether the logits of an expert are known to depend on no other expert."""

    node: ir.Node
    routing: RouteSpec
    experts: ExpertsSpec
    count: int
    routed: int
    is_direct: bool
    parts: ExpertWeights
    values: Mapping[str, ir.Value]
    weights: Mapping[str, StoredWeight]
    biases: Mapping[str, Array]
    router: RouterProduct | None
    is_by_expert: bool
    correction_bias: Array | None

    @staticmethod
    def of(node: ir.Node) -> LayerState:
        """Read the present state. Raises UnsupportedError, naming the node, for weights or a routing that are computed
        in a way that no pass may change."""
        where = f"node {node_name(node)}"
        try:
            routed_by, weights = routing_of(node), stored_weights(node)
        except UnsupportedError as error:
            raise UnsupportedError(f"{where}: {error}") from error
        route, table, count = routed_by.route, routed_by.table, weights["down"].experts
        inputs, routing = dialect.inputs_of(node), dialect.inputs_of(route)
        spec = dialect.spec_of(node, ExpertsSpec)
        biases = {name: inputs[name] for name in EXPERT_WEIGHTS if name not in weights and inputs[name] is not None}
        assert routing["logits"] is not None and inputs["x"] is not None
        correction = routing["correction_bias"]
        return LayerState(
            node,
            dialect.spec_of(route, RouteSpec),
            spec,
            count,
            count + spec.identity_experts if table is None else len(table),
            table is None,
            ExpertWeights(node),
            weight_inputs(node),
            weights,
            {name: _numbers(value, where) for name, value in biases.items()},
            router_product(routing["logits"], inputs["x"]),
            has_own_columns(routing["logits"]),
            None if correction is None else _numbers(correction, where),
        )


def _numbers(value: ir.Value | None, where: str) -> Array:
    tensor = constant(value)
    if tensor is None:
        raise UnsupportedError(f"{where}: {'' if value is None else value.name} is computed when the model runs")
    return np.asarray(tensor.numpy())


@dataclasses.dataclass(frozen=True)
class Change:
    """An operand with one entry for each expert, after the passes. ``copied[e]``: the source's expert whose entry it
    is, bit for bit; None for a new one. ``numbers``: all entries, an array [E,...] or a stored weight; None where they
    are not known, and all are copies."""

    copied: tuple[int | None, ...]
    numbers: Array | StoredWeight | None

    @property
    def copies(self) -> list[int] | None:
        """The source's experts, if all entries are copies."""
        copies = [expert for expert in self.copied if expert is not None]
        return copies if len(copies) == len(self.copied) else None


@dataclasses.dataclass(frozen=True)
class LayerChange:
    """A layer between two states. ``operands``: the change of each operand of the node, and of ``router`` (rows [R,d]),
    ``router_bias`` and ``correction_bias``, where the layer has it. Identity experts have entries only in the last
    three, behind the others."""

    before: LayerState
    after: LayerState
    operands: Mapping[str, Change]

    @property
    def count(self) -> int:
        """The number of experts with weights."""
        return self.after.count

    @property
    def k(self) -> int:
        return self.after.routing.k

    @property
    def is_none(self) -> bool:
        """Whether every entry is where it was, and as many experts are chosen."""
        same_numbers = (self.count, self.k) == (self.before.count, self.before.routing.k)
        return same_numbers and all(
            change.copies == list(range(len(change.copied))) for change in self.operands.values()
        )

    @property
    def groups(self) -> int:
        return self.after.routing.groups


def change_of(before: LayerState) -> LayerChange:
    """Compare a layer with its state before the passes.

    Raises UnsupportedError, naming the node, for a change that is none of entries of experts: a layer that has become
    other operators, thresholds, experts with fewer hidden units.
    """
    where = f"node {node_name(before.node)}"
    if before.node.graph is None:
        raise UnsupportedError(f"{where}: is no layer of experts any more; leave out the pass that rewrites it")
    after = LayerState.of(before.node)
    _check_specs(before, after, where)
    _check_router(before, after, where)
    origins = origins_of(before.node, after.count + after.experts.identity_experts).experts
    groups = origins[: after.count]
    operands = {name: _weight_change(before, after, name, groups) for name in after.weights}
    operands |= {name: _rows_change(before.biases[name], after.biases[name], groups) for name in after.biases}
    routed = origins if after.is_direct else [(entry,) for entry in range(after.routed)]
    return LayerChange(before, after, operands | _router(before, after, routed))


def _check_specs(before: LayerState, after: LayerState, where: str) -> None:
    if after.routing.relative_threshold != before.routing.relative_threshold:
        raise UnsupportedError(
            f"{where}: pairs below {after.routing.relative_threshold:g} of the largest weight are left out, which no "
            "file of weights can say; skip by a smaller number: skip-experts{method=k}"
        )
    counts = {"k": after.routing.k, "groups": after.routing.groups}
    same_route = dataclasses.replace(before.routing, **counts) == after.routing
    arithmetic = {"arithmetic": after.experts.arithmetic, "activation_group": after.experts.activation_group}
    same_experts = dataclasses.replace(before.experts, **arithmetic) == after.experts
    shapes = [{name: weight.shape for name, weight in state.weights.items()} for state in (before, after)]
    if not same_route or not same_experts or shapes[0] != shapes[1] or before.biases.keys() != after.biases.keys():
        raise UnsupportedError(
            f"{where}: a pass changed the form of its experts or its routing, not only which experts there are and "
            "their numbers; leave that pass out (moec compile takes it)"
        )


def _check_router(before: LayerState, after: LayerState, where: str) -> None:
    """Raise UnsupportedError where a model with fewer experts would not route as the graph does: experts are chosen, or
    their weights are normalised, before what the graph knows as the router."""
    is_other = after.routed != before.routed or after.routing.k != before.routing.k
    if is_other and before.router is None and not before.is_by_expert:
        raise UnsupportedError(
            f"{where}: the logits of its experts depend on each other, so that a file with fewer of them, or fewer "
            "for a token, routes in another way than the graph after the passes; export for onnxruntime instead"
        )


def _weight_change(before: LayerState, after: LayerState, name: str, groups: Sequence[Sequence[int]]) -> Change:
    old, new = before.weights[name], after.weights[name]
    if before.values[name] is after.values[name]:
        return Change(tuple(range(after.count)), new)
    copied = [group[0] if len(group) == 1 and _same(old, group[0], new, e) else None for e, group in enumerate(groups)]
    release_pages()
    return Change(tuple(copied), new)


def _same(old: StoredWeight, first: int, new: StoredWeight, expert: int) -> bool:
    """Whether an expert is stored as it was, bit for bit."""
    forms = [old.run_of(first).format, new.run_of(expert).format]
    if forms[0] != forms[1]:
        return False
    matrices = [old.run_of(first).encoded(first), new.run_of(expert).encoded(expert)]
    return all(_equal(matrices[0].read(table), matrices[1].read(table)) for table in tables_of(old, first))


def tables_of(weight: StoredWeight, expert: int) -> list[Table]:
    """The tables in which an expert's matrix is stored: codes and factors instead of scales that have two levels."""
    run = weight.run_of(expert)
    tables: list[Table] = ["data"]
    present = {"scale": run.scale, "minimum": run.minimum}
    for table, levels in LEVELS.items():
        if present[table] is not None:
            tables.extend([table] if run.levels(table) is None else levels)
    return tables if run.zero_point is None else [*tables, "zero_point"]


def _equal(old: Array | None, new: Array | None) -> bool:
    """Whether both have the same bits, so that NaNs are equal and zeros of other signs are not."""
    if old is None or new is None:
        return old is new
    same_kind = old.dtype == new.dtype and old.shape == new.shape
    return same_kind and np.ascontiguousarray(old).tobytes() == np.ascontiguousarray(new).tobytes()


def _rows_change(old: Array, new: Array, groups: Sequence[Sequence[int]]) -> Change:
    """The change of an array with an entry for each expert. An average of several experts has the row of the router
    of one of them."""
    copied = [next((first for first in group if _equal(old[first], new[e])), None) for e, group in enumerate(groups)]
    return Change(tuple(copied), new)


def _router(before: LayerState, after: LayerState, groups: Sequence[Sequence[int]]) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    if before.router is not None and after.router is not None:
        changes["router"] = _rows_change(before.router.weight.T, after.router.weight.T, groups)
        if before.router.bias is not None and after.router.bias is not None:
            changes["router_bias"] = _rows_change(before.router.bias, after.router.bias, groups)
    elif all(len(group) == 1 for group in groups) and _is_unchanged(before.router):
        changes |= dict.fromkeys(("router", "router_bias"), Change(tuple(first for (first,) in groups), None))
    else:
        raise UnsupportedError(
            f"node {node_name(before.node)}: its logits are no product of its rows with a constant matrix, so new rows "
            "of the router are not known; prune experts instead of merging them, and leave routers as they are"
        )
    if before.correction_bias is not None and after.correction_bias is not None:
        changes["correction_bias"] = _rows_change(before.correction_bias, after.correction_bias, groups)
    return changes


def _is_unchanged(product: RouterProduct | None) -> bool:
    """Whether the product of a router, where there was one, is still the same, perhaps with columns picked from it."""
    if product is None:
        return True
    rows = product.node.inputs[0]
    if product.node.graph is None or rows is None:
        return False
    now = router_product(product.node.outputs[0], rows)
    return now is not None and np.array_equal(now.weight, product.weight)
