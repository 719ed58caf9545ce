"""Pad: pads may be negative, which removes elements, and may be known only when the program runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.indexing import in_range


def _convert_pad(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    mode = attribute(node, "mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise UnsupportedError(f"Pad mode {mode!r} is unknown; expected constant, edge, reflect or wrap")
    sizes = lowering.dimensions(value)
    axes = lowering.numbers(optional_input(node, 3), "the axes") or list(range(len(sizes)))
    pads = lowering.runtime_integers(required_input(node, 1))
    before: list[Any] = [0] * len(sizes)
    kept: list[tuple[Any, Any]] = [(0, size) for size in sizes]
    shape = list(sizes)
    padded, needed = set(), []
    for number, axis in enumerate(axes):
        axis = normalized_axis(axis, len(sizes))
        before[axis] = pads[number]
        if any(not isinstance(pad, int) or pad for pad in (pads[number], pads[number + len(axes)])):
            padded.add(axis)
        after = pads[number + len(axes)]
        kept[axis] = _kept(lowering, sizes[axis], pads[number], after)
        padded_size = lowering.sizes.simplify(sizes[axis] + pads[number] + after)
        actual = f"pads {[pads[number], after]} on axis {axis} of size {sizes[axis]}"
        needed += _valid_pads(lowering, mode, actual, kept[axis][1], (pads[number], after), padded_size)
        shape[axis] = lowering.sizes.at_least(padded_size, 0)
    fill = optional_input(node, 2)
    constant_fill = fill is None or lowering.is_constant(fill)
    number = 0 if fill is None or not constant_fill else np.asarray(lowering.constant(fill)).item()

    def build(source: te.Tensor, *fills: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            places = [index - start for index, start in zip(at, before, strict=True)]
            if mode != "constant":
                return source(*(_padded_position(place, *part, mode) for place, part in zip(places, kept, strict=True)))
            inside = [in_range(places[axis], sizes[axis]) for axis in sorted(padded)]
            outside = fills[0](*[0] * len(fills[0].shape)) if fills else tirx.const(number, source.dtype)
            return tirx.if_then_else(tirx.all(tirx.const(True, "bool"), *inside), source(*places), outside)

        return te.compute([lowering.sizes.expression(size) for size in shape], element, name="pad")

    values = [value] if constant_fill or fill is None else [value, fill]
    if fill is not None and not constant_fill:
        count = lowering.sizes.product(lowering.dimensions(fill))
        needed += lowering.require(lowering.sizes.same(count, 1), f"{count} numbers to fill with", "one")
    return lowering.compute(build, [lowering.tensor(value) for value in values], "pad", needed)


def _kept(lowering: Lowering, size: Any, before: Any, after: Any) -> tuple[Any, Any]:
    """Start and size of the part of an axis that negative pads leave; positive pads repeat elements of this part."""
    first, last = (lowering.sizes.at_least(lowering.sizes.simplify(-1 * pad), 0) for pad in (before, after))
    return first, lowering.sizes.simplify(size - first - last)


def _valid_pads(
    lowering: Lowering, mode: str, actual: str, size: Any, pads: Sequence[Any], padded: Any
) -> list[Requirement]:
    """Checks that the result's size ``padded`` is not negative, and that there are elements for the pads to repeat.

    ``size``: elements of the axis that negative pads leave."""
    needed = lowering.require(padded >= 0, actual, "a result of size 0 or more")
    if mode in ("edge", "wrap"):
        needed += lowering.require(_either(padded <= 0, size >= 1), actual, "something to repeat")
    if mode == "reflect":
        for pad in pads:
            fits = _either(_either(padded <= 0, pad <= 0), pad < size)
            needed += lowering.require(fits, actual, "pads below the size")
    return needed


def _either(left: Any, right: Any) -> Any:
    if left is True or right is True:
        return True
    return right if left is False else left if right is False else tirx.any(left, right)


def _padded_position(place: tirx.Expr, first: Any, size: Any, mode: str) -> tirx.Expr:
    """Position in the source whose element the result has at ``place``; in [first, first + size)."""
    if mode == "wrap":
        return first + tirx.floormod(place - first, tirx.max(size, tirx.IntImm("int64", 1)))
    if mode == "reflect":
        distance = tirx.abs(place - first)
        place = first + tirx.Select(distance >= size, 2 * (size - 1) - distance, distance)
    return tirx.max(tirx.min(place, first + size - 1), first + tirx.IntImm("int64", 0))


CONVERTERS: dict[str, Converter] = {"Pad": _convert_pad}
