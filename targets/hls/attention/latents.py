"""Latents of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), in floats and in integers.

A latent is a product of normalised tokens with few results, normalised by its root mean square. Queries have one or
none; keys and values share another. There may also be shared channels: results that are not normalised, which the keys
of all heads take. If rows also take tokens, these come before the latents. Each row of a head is then a single product
of the concatenation, with zero weights for parts that it does not take.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.targets.hls.design.attention import LatentShape
from moec.targets.hls.design.normalization import FloatNorm, QuantizedNorm, quantize_norm, widened_norm
from moec.targets.hls.design.numbers import INPUT_BITS, bits_for
from moec.targets.hls.design.projection import QuantizedProjection, project
from moec.targets.hls.moe.quantize import scale_for
from moec.targets.hls.moe.reference import projected

Array = np.ndarray[Any, Any]

_MOST_EPSILON = (1 << 32) - 1


@dataclasses.dataclass(frozen=True)
class Latent:
    """A product of tokens with ``weights`` [r, d] and ``bias`` [r], and the ``norm`` of its results, if any."""

    weights: Array
    bias: Array
    norm: FloatNorm | None = None

    @property
    def rank(self) -> int:
        return len(self.weights)

    def product(self, tokens: Array) -> Array:
        """The product of tokens, [T, d] → [T, r]."""
        return tokens @ self.weights.T + self.bias

    def normalized(self, results: Array) -> Array:
        """The normalised results, [T, r] → [T, r]."""
        return results if self.norm is None else self.norm.run(results)


@dataclasses.dataclass(frozen=True)
class FloatLatents:
    """The latents of a block. ``keys``: of keys and values; ``queries``: None if these are products of tokens;
    ``shared``: channels that are not normalised, or None. ``tokens``: whether rows also take tokens, which then come
    first."""

    keys: Latent
    queries: Latent | None = None
    shared: Latent | None = None
    tokens: bool = False

    @property
    def parts(self) -> list[Latent]:
        """The latents that exist, in the order of the columns."""
        return [latent for latent in (self.queries, self.keys, self.shared) if latent is not None]

    @property
    def shape(self) -> LatentShape:
        queries, shared = (0 if latent is None else latent.rank for latent in (self.queries, self.shared))
        return LatentShape(queries, self.keys.rank, shared, self.tokens)

    def run(self, tokens: Array) -> Array:
        """The inputs of rows, [..., tokens and latents], for normalised tokens [..., d]."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        parts = [rows] if self.tokens else []
        parts += [latent.normalized(latent.product(rows)) for latent in self.parts]
        return np.concatenate(parts, axis=1).reshape(*tokens.shape[:-1], -1)


@dataclasses.dataclass(frozen=True)
class QuantizedLatents:
    """Latents in integers. ``down``: one matrix [1, r, d] for all latents, with int8 results. ``norms``: of the
    queries' latent, if any, and of the keys', both padded to the wider one. ``scales``: of each channel of tokens and
    latents."""

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
        """The inputs of rows, int8 [T, tokens and latents], for normalised tokens int8 [T, d]."""
        results = projected(tokens, self.down, 0, 8)
        parts, start = [tokens] if self.shape.tokens else [], 0
        for rank, norm in itertools.zip_longest(self.shape.ranks, self.norms):
            part = results[:, start : start + rank]
            parts.append(part if norm is None else _normalized(norm, part))
            start += rank
        return np.concatenate(parts, axis=1)

    def lowered(self, shift: int, norm_shift: int) -> QuantizedLatents:
        """The same latents with smaller shifts of the product and of the norms."""
        multipliers = self.down.multipliers.lowered(shift)
        norms = tuple(norm.lowered(norm_shift) for norm in self.norms)
        return dataclasses.replace(self, down=dataclasses.replace(self.down, multipliers=multipliers), norms=norms)


def _normalized(norm: QuantizedNorm, rows: Array) -> Array:
    """Normalise rows [T, r], padded with zeros to the width of the norm."""
    rank = rows.shape[1]
    return norm.run(np.pad(rows, ((0, 0), (0, len(norm.multipliers) - rank))), INPUT_BITS)[:, :rank]


def quantize_latents(name: str, latents: FloatLatents, tokens: Array, input_scale: float) -> QuantizedLatents:
    """Quantise latents, calibrated with normalised ``tokens`` [..., d], which become int8 with ``input_scale``.
    ``name``: of the block, for errors.

    Raises UnsupportedError for norms other than RMS, and for numbers that integers cannot represent.
    """
    rows, shape = tokens.reshape(-1, tokens.shape[-1]), latents.shape
    products = [item.product(rows) for item in latents.parts]
    row_scales = [scale_for(item, 8) for item in products]
    down = project(
        np.concatenate([item.weights for item in latents.parts])[None],
        np.concatenate([item.bias for item in latents.parts])[None],
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
        raise UnsupportedError(f"{name}: normalises latents in another way; expected RMS normalisation without a bias")
    quantized = quantize_norm(name, widened_norm(norm, width), row_scale, scale)
    if quantized.epsilon >= min(1 << (2 * INPUT_BITS - 1 + 2 * bits_for(width)), _MOST_EPSILON):
        raise UnsupportedError(
            f"{name}: epsilon {norm.epsilon:.3g} of a latent's normalisation is larger than the mean square of any "
            "int8 row; expected less"
        )
    return quantized
