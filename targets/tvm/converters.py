"""The one table of generic operators, assembled from one file per theme."""

from __future__ import annotations

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
)
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
