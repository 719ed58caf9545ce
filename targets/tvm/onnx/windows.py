"""Windows that slide over the spatial axes of a tensor [N, C, spatial...]: their positions and their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from tvm import tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, steps
from moec.targets.tvm.sizes.symbolic import Sizes


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows by spatial axis: the window's size, stride and dilation, the padding on both sides, and the number of
    windows. Window ``o`` sees the positions ``o * stride - before + k * dilation``."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[Any]
    after: list[Any]
    counts: list[Any]

    @staticmethod
    def of(node: ir.Node, spatial: Sequence[Any], kernel: Sequence[int], sizes: Sizes) -> Windows:
        """Windows by the attributes ``strides``, ``dilations``, ``pads``, ``auto_pad`` and ``ceil_mode``, with the
        formulas of ONNX's MaxPool. ``spatial``: the sizes that the windows slide over."""
        rank = len(kernel)
        if len(spatial) != rank:
            raise UnsupportedError(f"a window of {rank} axes over {len(spatial)} spatial ones; expected as many")
        strides, dilations = steps(node, "strides", rank), steps(node, "dilations", rank)
        pads = [int(pad) for pad in attribute(node, "pads", [0] * 2 * rank)]
        if min(kernel, default=1) < 1:
            raise UnsupportedError(f"a window of {list(kernel)}; expected 1 or more on each axis")
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        automatic, ceil = attribute(node, "auto_pad", "NOTSET"), bool(attribute(node, "ceil_mode", 0))
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            counts = [
                _quotient(sizes, size + stride - 1, stride) for size, stride in zip(spatial, strides, strict=True)
            ]
            missing = [
                sizes.at_least(sizes.simplify((count - 1) * stride + span - size), 0)
                for count, stride, span, size in zip(counts, strides, spans, spatial, strict=True)
            ]
            smaller = [_quotient(sizes, needed, 2) for needed in missing]
            larger = [sizes.simplify(whole - half) for whole, half in zip(missing, smaller, strict=True)]
            before, after = (smaller, larger) if automatic == "SAME_UPPER" else (larger, smaller)
            return Windows(list(kernel), strides, dilations, before, after, counts)
        before, after = (pads[:rank], pads[rank:]) if automatic == "NOTSET" else ([0] * rank, [0] * rank)
        counts = [_count(sizes, *axis, ceil=ceil) for axis in zip(spatial, before, after, spans, strides, strict=True)]
        return Windows(list(kernel), strides, dilations, before, after, counts)

    def positions(self, outputs: Sequence[Any], inside: Sequence[Any]) -> list[Any]:
        """Position of a window's element in the unpadded tensor, per axis; it may be outside, in the padding.

        ``outputs``: the window's number, and ``inside``: the element's index in the window, per axis."""
        return [
            output * stride + inner * dilation - before
            for output, stride, inner, dilation, before in zip(
                outputs, self.strides, inside, self.dilations, self.before, strict=True
            )
        ]


def _count(sizes: Sizes, size: Any, before: int, after: int, span: int, stride: int, *, ceil: bool) -> Any:
    room = sizes.simplify(size + before + after - span)
    if not ceil:
        return sizes.at_least(sizes.simplify(_quotient(sizes, room, stride) + 1), 0)
    count = sizes.simplify(_quotient(sizes, room + stride - 1, stride) + 1)
    last = sizes.simplify((count - 1) * stride)  # the last window has to begin before the padding behind
    outside = sizes.less(last, sizes.simplify(size + before))
    if outside is None:
        less = tirx.if_then_else(last < size + before, count, count - 1)
        return sizes.at_least(sizes.simplify(less), 0)
    return sizes.at_least(count if outside else sizes.simplify(count - 1), 0)


def _quotient(sizes: Sizes, dividend: Any, divisor: int) -> Any:
    if isinstance(dividend, int):
        return dividend // divisor
    return sizes.simplify(tirx.floordiv(dividend, tirx.IntImm("int64", divisor)))


def all_inside(positions: Sequence[Any], spatial: Sequence[Any]) -> tirx.Expr:
    conditions = [tirx.all(place >= 0, place < size) for place, size in zip(positions, spatial, strict=True)]
    return tirx.all(tirx.const(True, "bool"), *conditions)
