"""What the passes that quantise have in common: formats with their groups, and activations to match."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Literal

import onnx_ir as ir

from moec.errors import MoecError
from moec.ir.dialect import ProductSpec
from moec.ir.names import node_name
from moec.ir.weights.format import MX_GROUP, WeightFormat
from moec.ir.weights.stored import input_axis
from moec.passes.weights.loss import Layer
from moec.passes.weights.store import set_arithmetic

QuantizedName = Literal["int8", "int4", "mxfp4"]

GROUPS = (128, 64, 32)
"""Sizes of groups that kernels are made for, from the fewest scales to the most."""
ACTIVATION_GROUPS = (128, 192, 96, 64, 32)
"""Sizes of groups of activations, from the best on: sums are scaled once per group, so small ones take time."""


def check_options(pass_name: str, names: set[str | None], group: int | None, zero_points: bool) -> None:
    """Raises MoecError for groups or zero points that a format does not have."""
    if group is not None and group < 0:
        raise MoecError(f"{pass_name}: group is {group}; expected a positive number, or 0 for one scale per channel")
    if "mxfp4" in names and group not in (None, MX_GROUP):
        raise MoecError(f"{pass_name}: mxfp4 has groups of {MX_GROUP}, found group={group}; leave the option out")
    if "mxfp4" in names and zero_points:
        raise MoecError(f"{pass_name}: mxfp4 has no zero points; leave the option out")


def input_sizes(layer: Layer) -> list[int]:
    """How many inputs each weight of a layer has."""
    return [weight.shape[input_axis(layer.node, name)] for name, weight in layer.weights.items()]


def resolve_format(
    name: QuantizedName, group: int | None, zero_points: bool, sizes: Sequence[int], others: Set[int] = frozenset()
) -> WeightFormat:
    """The format with its group. ``sizes``: the inputs of all weights of the layer; ``others``: the groups that other
    weights of it have, for kernels are made for one size of groups."""
    if name == "mxfp4":
        return WeightFormat(name, MX_GROUP)
    if group is None and name == "int4":
        group = next(iter(others)) if len(others) == 1 else _common_group(sizes) or GROUPS[-1]
    group = group or 0
    return WeightFormat(name, 0 if group >= max(sizes) else group, zero_points)


def quantize_activations(
    node: ir.Node, formats: Set[WeightFormat], sizes: Sequence[int], asked: int | None = None
) -> None:
    """Let the products of a node be computed in int8, if all formats of its weights are quantised. Activations share
    scales in larger groups than weights do, if all inputs divide into them, or in the groups ``asked`` for.

    Raises MoecError for groups asked for that do not fit the inputs or the groups of the weights."""
    if not all(form.quantized for form in formats):
        return
    groups = {form.group for form in formats} - {0}
    if asked is not None:
        _check_activation_group(node, asked, groups, sizes)
    group = _activation_group(groups, sizes) if asked is None else asked
    set_arithmetic(node, ProductSpec(arithmetic="int8", activation_group=group))


def _check_activation_group(node: ir.Node, group: int, groups: Set[int], sizes: Sequence[int]) -> None:
    if group >= 0 and not (group and any(size % group for size in sizes)) and not any(group % one for one in groups):
        return
    fits = f"divides the numbers of inputs, {sorted(set(sizes))}"
    fits += f", and that the weights' groups divide, {sorted(groups)}" if groups else ""
    where = f"node {node_name(node)}"
    raise MoecError(f"{where}: activation_group is {group}; expected 0 for one scale per token, or one that {fits}")


def _activation_group(groups: Set[int], sizes: Sequence[int]) -> int:
    """The best group for weights that have ``groups``."""
    if len(groups) > 1:
        return 0
    of_weights = max(groups, default=0)
    whole = (group for group in ACTIVATION_GROUPS if not of_weights or group % of_weights == 0)
    return next((group for group in whole if all(size % group == 0 for size in sizes)), of_weights)


def _common_group(sizes: Sequence[int]) -> int:
    """The largest group that divides all sizes; 0 when none does."""
    return next((group for group in GROUPS if all(size % group == 0 for size in sizes)), 0)
