"""Latents: what rows of heads are products of where these are not one product of tokens each (DeepSeek-V2, arXiv
2405.04434). In floats and in integers.

A latent is a product of normalised tokens with few results, normalised by its root mean square; queries have one or
none, keys and values share another. Beside these may be channels that are not normalised: what all heads' keys have in
common. Where a row is a product of tokens, too, tokens stand in front of the latents. A row is then one product of all
that, with zeros where it takes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from moec.errors import UnsupportedError
from moec.targets.hls.attention.design import LatentShape
from moec.targets.hls.moe.design import INPUT_BITS, bits_for
from moec.targets.hls.moe.projection import QuantizedProjection, project
from moec.targets.hls.moe.quantize import scale_for
from moec.targets.hls.moe.reference import projected
from moec.targets.hls.normalization import FloatNorm, QuantizedNorm, quantize_norm, widened_norm

Array = np.ndarray[Any, Any]

_MOST_EPSILON = (1 << 32) - 1


@dataclasses.dataclass(frozen=True)
class Latent:
    """``weights`` [r, d] and ``bias`` [r] of a product of tokens, whose results go through ``norm``, where there is
    one."""

    weights: Array
    bias: Array
    norm: FloatNorm | None = None

    @property
    def rank(self) -> int:
        return len(self.weights)

    def product(self, tokens: Array) -> Array:
        """[T, d] → [T, r]."""
        return tokens @ self.weights.T + self.bias

    def normalized(self, results: Array) -> Array:
        """[T, r] → [T, r]."""
        return results if self.norm is None else self.norm.run(results)


@dataclasses.dataclass(frozen=True)
class FloatLatents:
    """Of ``keys`` and values; of ``queries``, None where these are products of tokens; ``shared``: channels that are
    not normalised, None where there are none. ``tokens``: these stand in front of all latents."""

    keys: Latent
    queries: Latent | None = None
    shared: Latent | None = None
    tokens: bool = False

    @property
    def parts(self) -> list[Latent]:
        """In the order in which they stand."""
        return [one for one in (self.queries, self.keys, self.shared) if one is not None]

    @property
    def shape(self) -> LatentShape:
        queries, shared = (0 if one is None else one.rank for one in (self.queries, self.shared))
        return LatentShape(queries, self.keys.rank, shared, self.tokens)

    def run(self, tokens: Array) -> Array:
        """Normalised tokens [..., d] → what rows are products of, [..., tokens and latents]."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        found = [rows] if self.tokens else []
        found += [one.normalized(one.product(rows)) for one in self.parts]
        return np.concatenate(found, axis=1).reshape(*tokens.shape[:-1], -1)


@dataclasses.dataclass(frozen=True)
class QuantizedLatents:
    """``down``: one matrix [1, r, d] of all parts, whose results are int8. ``norms``: of queries' latents, where there
    are some, and of keys', as wide as the wider of both. ``scales``: what steps of tokens and latents stand for, one by
    channel."""

    shape: LatentShape
    down: QuantizedProjection
    norms: tuple[QuantizedNorm, ...]
    scales: Array

    @property
    def query_norm(self) -> QuantizedNorm | None:
        return self.norms[0] if self.shape.queries else None

    @property
    def key_norm(self) -> QuantizedNorm:
        return self.norms[-1]

    def run(self, tokens: Array) -> Array:
        """Normalised tokens int8 [T, d] → int8 [T, tokens and latents]."""
        results = projected(tokens, self.down, 0, 8)
        found, at = [tokens] if self.shape.tokens else [], 0
        for rank, norm in itertools.zip_longest(self.shape.ranks, self.norms):
            part = results[:, at : at + rank]
            found.append(part if norm is None else _normalized(norm, part))
            at += rank
        return np.concatenate(found, axis=1)

    def lowered(self, shift: int, norm_shift: int) -> QuantizedLatents:
        """With shifts of the product and of both norms that are no larger."""
        multipliers = self.down.multipliers.lowered(shift)
        norms = tuple(norm.lowered(norm_shift) for norm in self.norms)
        return dataclasses.replace(self, down=dataclasses.replace(self.down, multipliers=multipliers), norms=norms)


def _normalized(norm: QuantizedNorm, rows: Array) -> Array:
    """Rows [T, r] in front of zeros up to the width of the norm."""
    rank = rows.shape[1]
    return norm.run(np.pad(rows, ((0, 0), (0, len(norm.multipliers) - rank))), INPUT_BITS)[:, :rank]


def quantize_latents(name: str, latents: FloatLatents, tokens: Array, input_scale: float) -> QuantizedLatents:
    """Calibrate with normalised ``tokens`` [..., d], int8 in steps of ``input_scale``; ``name`` is the block's.

    Raises UnsupportedError for norms other than by root mean squares, and for numbers that no integer can say.
    """
    rows, shape = tokens.reshape(-1, tokens.shape[-1]), latents.shape
    products = [one.product(rows) for one in latents.parts]
    row_scales = [scale_for(one, 8) for one in products]
    down = project(
        np.concatenate([one.weights for one in latents.parts])[None],
        np.concatenate([one.bias for one in latents.parts])[None],
        input_scale,
        np.repeat(row_scales, shape.ranks),
        8,
    )
    scales, norms = [input_scale] * (rows.shape[1] if shape.tokens else 0), []
    for part, results, row_scale in zip(latents.parts, products, row_scales, strict=True):
        scale = row_scale
        if part.norm is not None:
            scale = scale_for(part.normalized(results), 8)
            norms.append(_quantized(name, part.norm, shape.norm_width, row_scale, scale))
        scales += [scale] * part.rank
    shift = min(norm.shift for norm in norms)
    return QuantizedLatents(shape, down, tuple(norm.lowered(shift) for norm in norms), np.array(scales))


def _quantized(name: str, norm: FloatNorm, width: int, row_scale: float, scale: float) -> QuantizedNorm:
    if norm.kind != "rms" or norm.bias.any():
        raise UnsupportedError(f"{name}: normalises latents otherwise than by their root mean squares, without a bias")
    found = quantize_norm(name, widened_norm(norm, width), row_scale, scale)
    if found.epsilon >= min(1 << (2 * INPUT_BITS - 1 + 2 * bits_for(width)), _MOST_EPSILON):
        raise UnsupportedError(f"{name}: epsilon {norm.epsilon:.3g} of a latent's norm is above all rows of int8")
    return found
