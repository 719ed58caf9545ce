"""Caches of keys and values, to which every call of a model adds."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.held_states import without_appended_zeros
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.lowering.paged_tensors import Places


def _convert_tensor_scatter(lowering: Lowering, node: ir.Node) -> Any:
    """The cache with ``update`` written from the position of each sequence on.

    Where zeros are appended to a cache to make room, they are read as such: the cache is copied once, not twice.
    """
    cache, update, starts = required_input(node, 0), required_input(node, 1), optional_input(node, 2)
    if attribute(node, "mode", "linear") != "linear":
        raise UnsupportedError("TensorScatter in a circular buffer is not supported; expected mode 'linear'")
    shape = lowering.dimensions(cache)
    axis = normalized_axis(attribute(node, "axis", -2), len(shape))
    source = without_appended_zeros(cache, axis)
    cached = lowering.paged(source)
    if cached is not None and cached.continued is node.outputs[0] and starts is not None:
        return lowering.appended(node, cached, lowering.tensor(update), Places(lowering.tensor(starts), shape[axis]))
    filled, length = lowering.dimensions(source)[axis], lowering.dimensions(update)[axis]

    needed = []
    for other in (other for other in range(len(shape)) if other != axis):
        size = lowering.dimensions(update)[other]
        same = lowering.sizes.same(size, shape[other])
        needed += lowering.require(
            same, f"the update has size {size} on axis {other}", f"{shape[other]}, as the cache has"
        )
    if starts is not None:
        if len(lowering.dimensions(starts)) != 1:
            raise UnsupportedError(
                f"{starts.name!r} has shape {lowering.dimensions(starts)}; expected one place a batch"
            )
        (count,) = lowering.dimensions(starts)
        needed += lowering.require(
            lowering.sizes.same(count, shape[0]), f"{count} positions", f"{shape[0]}, one a batch"
        )

    def build(old: te.Tensor, new: te.Tensor, *start: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            place = at[axis] - start[0](at[0]).astype("int64") if start else at[axis]
            kept: Any = old(*at)
            if source is not cache:
                kept = tirx.if_then_else(at[axis] < filled, kept, tirx.const(0, old.dtype))
            is_new = tirx.And(place >= 0, place < length)
            return tirx.if_then_else(is_new, new(*at[:axis], place, *at[axis + 1 :]), kept)

        return te.compute([lowering.sizes.expression(size) for size in shape], element, name="tensor_scatter")

    values = [source, update, *([] if starts is None else [starts])]
    return lowering.compute(build, [lowering.tensor(value) for value in values], "tensor_scatter", needed)


CONVERTERS: dict[str, Converter] = {"TensorScatter": _convert_tensor_scatter}
