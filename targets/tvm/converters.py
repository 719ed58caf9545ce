"""The one table of operators: generic ones, from one file per theme, and the heavy ones of a target."""

from __future__ import annotations

from collections.abc import Mapping

from moec.targets.tvm import (
    convert_cache,
    convert_elementwise,
    convert_indexing,
    convert_integer_products,
    convert_normalization,
    convert_pad,
    convert_parts,
    convert_pooling,
    convert_quantization,
    convert_range,
    convert_reduction,
    convert_resize,
    convert_rotary,
    convert_sampling,
    convert_selection,
    convert_shape,
    loops,
)
from moec.targets.tvm.heavy import HeavyConverter
from moec.targets.tvm.lowering import Converter

CONVERTERS: dict[str, Converter] = {
    **convert_elementwise.CONVERTERS,
    **convert_shape.CONVERTERS,
    **convert_parts.CONVERTERS,
    **convert_range.CONVERTERS,
    **convert_pad.CONVERTERS,
    **convert_indexing.CONVERTERS,
    **convert_reduction.CONVERTERS,
    **convert_integer_products.CONVERTERS,
    **convert_normalization.CONVERTERS,
    **convert_pooling.CONVERTERS,
    **convert_sampling.CONVERTERS,
    **convert_selection.CONVERTERS,
    **convert_resize.CONVERTERS,
    **convert_quantization.CONVERTERS,
    **convert_rotary.CONVERTERS,
    **convert_cache.CONVERTERS,
}


def all_converters(heavy: Mapping[str, HeavyConverter], *, takes_steps: bool = False) -> dict[str, Converter]:
    """The table of all operators of a target: its own ``heavy`` ones go before generic ones. ``takes_steps``: whether
    the target's host code can run loops step by step."""
    return {**CONVERTERS, **heavy, **(loops.CONVERTERS if takes_steps else {})}
