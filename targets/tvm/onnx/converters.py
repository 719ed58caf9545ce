"""The one table of operators: generic ones, from one file per theme, and the heavy ones of a target."""

from __future__ import annotations

from collections.abc import Mapping

from moec.targets.tvm.lowering.context import HeavyConverter
from moec.targets.tvm.lowering.lowering import Converter
from moec.targets.tvm.onnx import (
    cache,
    elementwise,
    indexing,
    integer_products,
    loops,
    normalization,
    pad,
    parts,
    pooling,
    quantization,
    ranges,
    reduction,
    resize,
    rotary,
    sampling,
    selection,
    shape,
)

CONVERTERS: dict[str, Converter] = {
    **elementwise.CONVERTERS,
    **shape.CONVERTERS,
    **parts.CONVERTERS,
    **ranges.CONVERTERS,
    **pad.CONVERTERS,
    **indexing.CONVERTERS,
    **reduction.CONVERTERS,
    **integer_products.CONVERTERS,
    **normalization.CONVERTERS,
    **pooling.CONVERTERS,
    **sampling.CONVERTERS,
    **selection.CONVERTERS,
    **resize.CONVERTERS,
    **quantization.CONVERTERS,
    **rotary.CONVERTERS,
    **cache.CONVERTERS,
}


def all_converters(heavy: Mapping[str, HeavyConverter], *, takes_steps: bool = False) -> dict[str, Converter]:
    """The table of all operators of a target: its own ``heavy`` ones go before generic ones. ``takes_steps``: whether
    the target's host code can run loops step by step."""
    return {**CONVERTERS, **heavy, **(loops.CONVERTERS if takes_steps else {})}
