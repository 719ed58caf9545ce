"""Options that the quantising passes share: formats with their groups, and activations to match."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence, Set

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import ProductSpec
from moec.ir.weight_operands import input_axis
from moec.ir.weights.format import ELEMENTS, FormatName, QuantizedName, WeightFormat
from moec.passes.weights.calibration import Method
from moec.passes.weights.loss import Layer
from moec.passes.weights.store import set_arithmetic

GROUPS = (128, 64, 32)
"""Sizes of groups that kernels are made for, from the fewest scales to the most."""
ACTIVATION_GROUPS = (128, 192, 96, 64, 32)
"""Sizes of groups of activations for weights without groups, best first: each of these groups costs a pass over the
sums."""
LEAST_ACTIVATION_GROUP = 16
"""Fewest activations that share a scale if weights have smaller groups: each group takes time when a row is rounded."""


@dataclasses.dataclass(frozen=True)
class ScaleOptions:
    """The options of a pass that say how weights share scales. ``group``: None for one that fits the weights; the rest
    as in :class:`WeightFormat`."""

    group: int | None = None
    zero_points: bool = False
    minima: bool = False
    super_group: int = 0

    def check(self, pass_name: str, names: Set[str | None], method: Method) -> None:
        """Raise MoecError for options that one of the formats, or the method, does not have."""
        if self.group is not None and self.group < 0:
            raise MoecError(f"{pass_name}: group is {self.group}; expected a positive number, or 0 for one per channel")
        two_levels = self.super_group or any(ELEMENTS[name].has_factors for name in names if name in ELEMENTS)
        if (self.minima or two_levels) and method != "rtn":
            raise MoecError(f"{pass_name}: minima and scales of two levels are rounded to nearest; expected method=rtn")
        for name, elements in ELEMENTS.items():
            if name in names:
                self._check(pass_name, name, (*elements.groups, *(elements.imported if self.super_group else ())))

    def _check(self, pass_name: str, name: FormatName, groups: Sequence[int]) -> None:
        if groups and self.group not in (None, *groups):
            sizes = " or ".join(map(str, groups))
            raise MoecError(
                f"{pass_name}: {name} has groups of {sizes}, found group={self.group}; leave the option out"
            )
        if self.zero_points and ELEMENTS[name].unsigned is None:
            raise MoecError(f"{pass_name}: {name} has no zero points; leave the option out")
        if (self.minima or self.super_group) and not self.group:
            raise MoecError(f"{pass_name}: minima and scales of two levels belong to groups; expected group=SIZE")
        try:
            self.format(name, self.group or next(iter(groups), 0))
        except ValueError as error:
            raise MoecError(f"{pass_name}: {error}") from error

    def format(self, name: FormatName, group: int) -> WeightFormat:
        """The format with these options."""
        return WeightFormat(name, group, self.zero_points, self.minima, self.super_group)


def input_sizes(layer: Layer) -> list[int]:
    """Number of inputs of each weight of a layer."""
    return [weight.shape[input_axis(layer.node, name)] for name, weight in layer.weights.items()]


def resolve_format(
    name: QuantizedName, scales: ScaleOptions, sizes: Sequence[int], others: Set[int] = frozenset()
) -> WeightFormat:
    """The format, with a group. ``sizes``: the inputs of all weights of the layer; ``others``: the groups of its other
    weights, because a kernel is made for one size of groups."""
    elements, group = ELEMENTS[name], scales.group
    if group is None and elements.usually_grouped:
        group = _usual_group(elements.groups, sizes, others)
    group = group or 0
    is_whole = group >= max(sizes) and not elements.groups and not scales.minima and not scales.super_group
    return scales.format(name, 0 if is_whole else group)


def _usual_group(allowed: Sequence[int], sizes: Sequence[int], others: Set[int]) -> int:
    """Default group: that of the other weights, if it is one of those ``allowed`` (empty: any)."""
    if len(others) == 1 and (not allowed or others <= set(allowed)):
        return next(iter(others))
    groups = allowed or GROUPS
    return _common_group(sizes, groups) or groups[-1]


def fit_bytes(formats: Set[WeightFormat]) -> bool:
    """Whether the numbers of all weights, or twice these, are integers of 8 bits."""
    return all(form.quantized and form.elements.fits_bytes for form in formats)


def quantize_activations(
    node: ir.Node, formats: Set[WeightFormat], sizes: Sequence[int], asked: int | None = None
) -> None:
    """Let the products of a node be computed in int8, if its weights fit (:func:`fit_bytes`). Activations share scales
    in the groups of the weights, if these have any, or in groups of ``asked`` activations.

    Raises MoecError if ``asked`` does not fit the inputs or the groups of the weights.
    """
    if not fit_bytes(formats):
        return
    groups = {form.group for form in formats}
    if asked is not None:
        _check_activation_group(node, asked, groups - {0}, sizes)
    group = _activation_group(groups, sizes) if asked is None else asked
    set_arithmetic(node, ProductSpec(arithmetic="int8", activation_group=group))


def _check_activation_group(node: ir.Node, group: int, groups: Set[int], sizes: Sequence[int]) -> None:
    if (
        group >= 0
        and not (group and any(size % group for size in sizes))
        and not any(group % other for other in groups)
    ):
        return
    fits = f"divides the numbers of inputs, {sorted(set(sizes))}"
    fits += f", and that the weights' groups divide, {sorted(groups)}" if groups else ""
    where = f"node {node_name(node)}"
    raise MoecError(f"{where}: activation_group is {group}; expected 0 for one scale per token, or one that {fits}")


def _activation_group(groups: Set[int], sizes: Sequence[int]) -> int:
    """The best group of activations for weights with ``groups`` (0: all inputs share a scale). It is that of the
    weights, whose sums are scaled one by one anyway. Kernels sum up one size of groups in a product: weights without
    groups take that of the activations."""
    if not groups - {0}:
        return _common_group(sizes, ACTIVATION_GROUPS)
    of_weights = math.lcm(*(groups - {0}))
    if len(groups - {0}) > 1 and (0 in groups or any(size % of_weights for size in sizes)):
        return 0
    enough = of_weights * -(-LEAST_ACTIVATION_GROUP // of_weights)
    return of_weights if 0 in groups else _common_group(sizes, (enough,)) or of_weights


def _common_group(sizes: Sequence[int], groups: Sequence[int]) -> int:
    """The first of the groups that divides all sizes; 0 when none does."""
    return next((group for group in groups if all(size % group == 0 for size in sizes)), 0)
