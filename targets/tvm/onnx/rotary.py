"""Rotary position embedding (RoFormer, arXiv 2104.09864): pairs of elements of a head are rotated by the position."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.indexing import safe_index


def _convert_rotary_embedding(lowering: Lowering, node: ir.Node) -> Any:
    """x is [B,H,S,h], or [B,S,H*h] with the attribute ``num_heads``; the cosines are [positions,r/2] or [B,S,r/2]."""
    x = required_input(node, 0)
    sizes = lowering.dimensions(x)
    if len(sizes) == 4:
        return _rotate(lowering, node, lowering.tensor(x), heads_axis=1)
    heads = attribute(node, "num_heads", 0)
    width = sizes[-1]
    if len(sizes) != 3 or not heads or not isinstance(width, int) or width % heads:
        raise UnsupportedError(f"input 0 of sizes {sizes} cannot be split into {heads} heads; set num_heads")
    split = lowering.reshape(lowering.tensor(x), [*sizes[:2], heads, width // heads])
    return lowering.reshape(_rotate(lowering, node, split, heads_axis=2), sizes)


def _rotate(lowering: Lowering, node: ir.Node, x: relax.Expr, heads_axis: int) -> relax.Var:
    sizes = [lowering.sizes.simplify(size) for size in x.ty.shape]
    rotated = attribute(node, "rotary_embedding_dim", 0) or sizes[3]
    if not isinstance(rotated, int) or rotated % 2:
        raise UnsupportedError(f"{rotated} elements of a head are to be rotated; expected an even fixed number")
    interleaved = bool(attribute(node, "interleaved", 0))
    positions = optional_input(node, 3)
    values = [required_input(node, 1), required_input(node, 2), *([] if positions is None else [positions])]
    needed = _requirements(lowering, values, [sizes[0], sizes[3 - heads_axis]], rotated // 2)

    def build(source: te.Tensor, cosines: te.Tensor, sines: te.Tensor, *places: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            batch, token, d = at[0], at[3 - heads_axis], at[3]
            row = [safe_index(places[0](batch, token), cosines.shape[0])] if places else [batch, token]
            is_first = tirx.floormod(d, 2) == 0 if interleaved else d < rotated // 2
            distance = 1 if interleaved else rotated // 2
            pair = tirx.floordiv(d, 2) if interleaved else tirx.floormod(d, rotated // 2)
            partner = tirx.if_then_else(is_first, d + distance, d - distance)
            sine = sines(*row, pair).astype("float32")
            turned = source(*at).astype("float32") * cosines(*row, pair).astype("float32")
            turned += source(*at[:3], partner).astype("float32") * tirx.if_then_else(is_first, -sine, sine)
            turned = turned.astype(source.dtype)
            return turned if rotated == sizes[3] else tirx.if_then_else(d < rotated, turned, source(*at))

        return te.compute(source.shape, element, name="rotary_embedding")

    return lowering.compute(build, [x, *map(lowering.tensor, values)], "rotary_embedding", needed)[0]


def _requirements(lowering: Lowering, values: list[ir.Value], tokens: list[Any], pairs: int) -> list[Requirement]:
    """Checks that the tables of cosines and sines, and the optional positions, cover every element read from them.

    ``tokens``: the sizes [B,S]; ``pairs``: columns that are read. Tables may be wider, made for a whole head."""
    caches, positions = values[:2], values[2:]
    rows = lowering.dimensions(caches[0])[:1] if positions else tokens
    needed: list[Requirement] = []
    expected_sizes = [(cache, rows, [pairs]) for cache in caches] + [(ids, tokens, []) for ids in positions]
    for value, leading, width in expected_sizes:
        sizes = lowering.dimensions(value)
        actual, expected = f"input {value.name!r} has sizes {sizes}", f"{[*leading, *width]}, or wider"
        if len(sizes) != len(leading) + len(width):
            raise UnsupportedError(f"{actual}; expected {expected}")
        for size, least in zip(sizes[len(leading) :], width, strict=True):
            needed += lowering.require(size >= least, actual, expected)
        for size, other in zip(sizes, leading, strict=False):
            needed += lowering.require(lowering.sizes.same(size, other), actual, expected)
    return needed


CONVERTERS: dict[str, Converter] = {"RotaryEmbedding": _convert_rotary_embedding}
