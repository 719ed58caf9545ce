"""Errors and costs of each weight in each format, by a profile, and the plan with the least error within a budget."""

from __future__ import annotations

import dataclasses
import decimal
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import LinearSpec, is_moec, spec_of
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weight_operands import stored_weights
from moec.ir.weights.encode import group_count
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight
from moec.passes.weights.calibration import Method, profile_reading
from moec.passes.weights.layer_groups import allocate_by_layer
from moec.passes.weights.method_gain import share_left
from moec.passes.weights.sensitivities import read_sensitivities
from moec.placing.plan import KEEP, LayerPlan
from moec.profiles import Profile
from moec.profiles.keys import key_of, numbered

Array = np.ndarray[Any, Any]

GIGABYTES_PER_SECOND = 30.0
"""Default of the memory bandwidth."""
_ROUNDED_UP = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)


@dataclasses.dataclass(frozen=True)
class Item:
    """The matrices of experts in operands that share a format, with ``inputs`` each and ``outputs`` of an expert.
    ``errors`` [formats]: the share of each format in the squared error of the layer's output, summed over all tokens.
    ``calls``: the share of the tokens that are multiplied with an expert's, on average."""

    node: ir.Node
    operands: tuple[str, ...]
    experts: tuple[int, ...]
    inputs: int
    outputs: int
    errors: Array
    calls: float = 1.0

    def bits(self, form: WeightFormat, *, scales: bool) -> float:
        """Bits of the matrices in a format, with or without its scales, zero points and minima."""
        elements = float(self.size * form.elements.bits)
        if not scales:
            return elements
        each = form.scale_bits * (1 + form.minima) + (form.elements.bits if form.zero_points else 0)
        each_output = group_count(self.inputs, form) * each + form.output_bits
        return elements + len(self.experts) * self.outputs * each_output

    @property
    def size(self) -> int:
        """Number of weights."""
        return len(self.experts) * self.inputs * self.outputs


@dataclasses.dataclass(frozen=True)
class WeightBudget:
    """A limit for all weights: ``average`` bits each, scales not counted; or, with scales, ``megabytes`` (millions) in
    all; or ``microseconds`` to decode a token.

    That time is predicted: a single token computes so little that it waits for its weights to be read
    (:mod:`moec.common.roofline`). It is therefore the bytes of each matrix times its calls per token, over the memory
    bandwidth.
    """

    average: float | None = None
    megabytes: float | None = None
    microseconds: float | None = None
    gigabytes_per_second: float = GIGABYTES_PER_SECOND

    def __post_init__(self) -> None:
        for name, amount in self.options.items():
            if not 0 < amount < math.inf:
                raise MoecError(f"{name} is {amount:g}; expected a number above 0")

    @property
    def options(self) -> dict[str, float]:
        """The limits by the names of the options."""
        named = {"avg": self.average, "megabytes": self.megabytes, "microseconds": self.microseconds}
        if self.microseconds is not None:
            named["gigabytes_per_second"] = self.gigabytes_per_second
        return {name: amount for name, amount in named.items() if amount is not None}

    def costs(self, items: Sequence[Item], forms: Sequence[WeightFormat]) -> Array:
        """The bits of each item in each format [items, formats]; for a budget of time, the bits that are read per
        token."""
        bits = np.array([[item.bits(form, scales=self.average is None) for form in forms] for item in items])
        return bits if self.microseconds is None else bits * np.array([[item.calls] for item in items])

    def most(self, items: Sequence[Item]) -> float:
        """The largest sum of :meth:`costs` over all items."""
        amount = next(iter(self.options.values()))
        return amount * self._bits_of_one(items)

    def refusal(self, items: Sequence[Item], forms: Sequence[WeightFormat], least: float) -> str:
        """Message that the budget cannot be met, because at least ``least`` bits are needed, in the unit of the
        budget."""
        name, amount = next(iter(self.options.items()))
        nearest = float(_ROUNDED_UP.create_decimal_from_float(least / self._bits_of_one(items) * (1 - 1e-9)))
        predicted = "" if self.microseconds is None else f", as predicted with {self.gigabytes_per_second:g} GB/s"
        return f"{name}={amount:g} cannot be met with {'+'.join(map(str, forms))}; the least is {nearest:g}{predicted}"

    def _bits_of_one(self, items: Sequence[Item]) -> float:
        """Bits per unit of the budget."""
        if self.microseconds is not None:
            return self.gigabytes_per_second * 8e3
        return 8e6 if self.megabytes is not None else float(sum(item.size for item in items))


def items_of(
    nodes: Sequence[ir.Node],
    profile: Profile,
    forms: Sequence[WeightFormat],
    sensitivities: str | os.PathLike[str] | None = None,
    method: Method = "rtn",
    per_layer: bool = False,
) -> list[Item]:
    """All floating-point weights of the nodes, with weighted errors; an item for each expert, or for all of a layer if
    ``per_layer``. Weights that are already quantised keep their format and cost nothing.

    ``sensitivities``: a file of factors for the errors of each layer (:mod:`moec.passes.weights.sensitivities`).
    Without it the factors are the sensitivities in the profile, if it has them for all nodes. ``method``: how weights
    will be rounded. Raises MoecError if the profile or the file lacks a node, or the profile the errors of a format.
    """
    factors = {} if sensitivities is not None or lacking(nodes, profile) else _measured(nodes, profile, forms, method)
    items = [
        dataclasses.replace(item, errors=item.errors * factors.get((id(node), item.operands[0]), 1.0))
        for node in nodes
        for item in _items(node, profile, forms)
    ]
    items = items if sensitivities is None else _weighted(items, sensitivities)
    return _together(items) if per_layer else items


def _together(items: Sequence[Item]) -> list[Item]:
    """Join the items of the same operands of a node."""
    by_weight: dict[tuple[int, tuple[str, ...]], list[Item]] = {}
    for item in items:
        by_weight.setdefault((id(item.node), item.operands), []).append(item)
    return [
        dataclasses.replace(
            same[0],
            experts=tuple(expert for item in same for expert in item.experts),
            errors=np.sum([item.errors for item in same], axis=0),
            calls=sum(item.calls for item in same) / len(same),
        )
        for same in by_weight.values()
    ]


def lacking(nodes: Sequence[ir.Node], profile: Profile) -> list[ir.Node]:
    """The nodes without a sensitivity in a profile: dense products, and all nodes in profiles without sensitivities."""
    return [node for node in nodes if is_moec(node, "Linear") or profile.experts(node).sensitivity is None]


def _measured(
    nodes: Sequence[ir.Node], profile: Profile, forms: Sequence[WeightFormat], method: Method
) -> dict[tuple[int, str], float]:
    """Factors for the errors of nodes, by the node's id and the first operand that shares a format. They turn errors
    into the divergence of the model's output, in nats per position."""
    factors = {}
    for node in nodes:
        measures, weights = profile.experts(node), ExpertWeights(node)
        with profile_reading(f"{profile.path}: node {node_name(node)}"):
            sensitivities = dict(zip(measures.parts, np.asarray(measures.sensitivity, np.float64), strict=True))
            for operands in operands_together(weights):
                part: Part = "down" if operands == ("down",) else "up"
                left = share_left(node, profile, operands, forms, method)
                factors[id(node), operands[0]] = sensitivities[part] * left / max(1, measures.tokens)
    return factors


def uniform(items: Sequence[Item], forms: Sequence[WeightFormat], budget: WeightBudget) -> WeightFormat | None:
    """The format with the least error within a budget if all items have the same one; None if none fits."""
    costs, errors = budget.costs(items, forms).sum(axis=0), np.sum([item.errors for item in items], axis=0)
    most = budget.most(items) * (1 + 1e-9)
    fitting = [(errors[at], costs[at], at) for at in range(len(forms)) if np.isfinite(errors[at]) and costs[at] <= most]
    return forms[min(fitting)[-1]] if fitting else None


def least_error(items: Sequence[Item], forms: Sequence[WeightFormat], budget: WeightBudget) -> list[LayerPlan]:
    """The formats with the least error within a budget. Raises MoecError for a budget that cannot be met, and for an
    item without a finite error."""
    if not items:
        return []
    for item in items:
        if not np.isfinite(item.errors).any():
            experts = "all experts" if len(item.experts) > 1 else f"expert {item.experts[0]}"
            where = f"node {node_name(item.node)}: weight {' and '.join(item.operands)} of {experts}"
            raise MoecError(f"{where}: has no finite error in any of {'+'.join(map(str, forms))}; does it hold a NaN?")
    errors = np.stack([item.errors for item in items])
    try:
        layers = [id(item.node) for item in items]
        chosen = allocate_by_layer(errors, budget.costs(items, forms), budget.most(items), layers, forms)
    except ValueError as error:
        raise MoecError(budget.refusal(items, forms, float(str(error)))) from error
    return plans_of(items, [forms[choice] for choice in chosen])


def _weighted(items: Sequence[Item], path: str | os.PathLike[str]) -> list[Item]:
    """The items with their errors multiplied by the factors in a file of sensitivities."""
    weights, weighted = read_sensitivities(path), []
    for item in items:
        key = key_of(item.node)
        if key not in weights:
            raise MoecError(
                f"{path}: node {node_name(item.node)}: has no weight of this layer ({key}); expected the sensitivities "
                "of this model, of every layer that gets formats"
            )
        weighted.append(dataclasses.replace(item, errors=item.errors * weights[key]))
    return weighted


def plans_of(items: Sequence[Item], chosen: Sequence[WeightFormat]) -> list[LayerPlan]:
    """The plans that give each item its selected format."""
    nodes = list(dict.fromkeys(item.node for item in items))
    plans = {
        node: LayerPlan(key, node_name(node), next(iter(stored_weights(node).values())).experts)
        for node, key in zip(nodes, numbered(map(key_of, nodes)), strict=True)
    }
    for item, form in zip(items, chosen, strict=True):
        plan = plans[item.node]
        for operand in item.operands:
            formats = plan.formats.setdefault(operand, [KEEP] * plan.experts)
            for expert in item.experts:
                formats[expert] = str(form)
    return list(plans.values())


def _items(node: ir.Node, profile: Profile, forms: Sequence[WeightFormat]) -> Iterator[Item]:
    if is_moec(node, "Linear"):
        yield from _linear_items(node, profile, forms)
        return
    measures, weights = profile.experts(node), ExpertWeights(node)
    with profile_reading(f"{profile.path}: node {node_name(node)}"):
        amounts = [measures.total_error(str(form)) for form in forms]
        calls = measures.count / max(1, measures.tokens)
    errors = np.stack([_known(profile, form, error) for form, error in zip(forms, amounts, strict=True)])
    for operands in operands_together(weights):
        parts: tuple[Part, ...] = ("down",) if operands == ("down",) else weights.before
        columns = [weights.parts.index(part) for part in parts]
        outputs, inputs = weights.operand(parts[0]).out_in(weights.transposed(parts[0]))
        floats = (set(_floats(weights.operands[name])) for name in operands)
        for expert in sorted(set.intersection(*floats)):
            each = errors[:, expert, columns].sum(axis=1)
            yield Item(node, operands, (expert,), inputs, outputs * len(operands), each, float(calls[expert]))


def operands_together(weights: ExpertWeights) -> tuple[tuple[str, ...], ...]:
    """The operands that share a format: kernels read gate and up together."""
    before = tuple(name for name in weights.operands if name != "down")
    return before, ("down",)


def _linear_items(node: ir.Node, profile: Profile, forms: Sequence[WeightFormat]) -> Iterator[Item]:
    measures, weight = profile.linear(node), stored_weights(node)["weight"]
    amounts = [measures.error(str(form)) for form in forms]
    errors = np.array([_known(profile, form, error) for form, error in zip(forms, amounts, strict=True)])
    errors = errors * (measures.tokens / max(1, len(measures.rows())))
    outputs, inputs = weight.out_in(spec_of(node, LinearSpec).transposed)
    for expert in _floats(weight):
        yield Item(node, ("weight",), (expert,), inputs, outputs, errors)


def _floats(weight: StoredWeight) -> Iterator[int]:
    return (expert for expert, form in enumerate(weight.formats) if not form.quantized)


def _known(profile: Profile, form: WeightFormat, error: Any) -> Any:
    if error is None:
        formats = ", ".join(profile.head.formats)
        raise MoecError(f"{profile.path}: holds no errors of {form}, only of {formats}; profile with --formats {form}")
    return error
