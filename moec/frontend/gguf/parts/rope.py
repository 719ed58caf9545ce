"""Rotary position embedding with the scalings that files ask for.

Frequencies follow ``ggml_rope_ext``: element pair i of n rotates by ``position * base^(-2i/n) / factor_i``, with the
factors of a tensor ``rope_freqs`` (Llama 3). Linear scaling divides all frequencies. YaRN (arXiv 2309.00071) divides
those of pairs that rotate rarely within the original context, keeps those that rotate often, with a ramp between, and
also stretches the result. ``longrope`` (Phi-3) has two tables of factors: one for more tokens than the original
context, one for fewer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.graph.builder import FLOAT, Builder

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Scaling of frequencies.

    ``factor``: ratio of the context to the ``original`` one. ``attention``: factor of cosines and sines. ``fast``,
    ``slow``: full turns within the original context between which YaRN's ramp lies. ``log_factor``: DeepSeek's
    ``mscale_all_dim``, 0 where there is none.
    """

    kind: str = "none"
    factor: float = 1.0
    original: int = 0
    attention: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    log_factor: float = 0.0

    @property
    def is_yarn(self) -> bool:
        return self.kind == "yarn" and self.factor != 1.0

    @property
    def attention_factor(self) -> float:
        """YaRN's factor of cosines and sines, before :attr:`stretch`: ``yarn_attn_factor`` of llama.cpp."""
        if not self.is_yarn:
            return self.attention
        magnitude = _magnitude(self.factor, 1.0)
        if self.log_factor:
            own = self.log_factor if self.log_factor != 1.0 else 1.0
            magnitude = _magnitude(self.factor, own) / _magnitude(self.factor, self.log_factor)
        return magnitude / (1 + 0.1 * math.log(self.factor)) * self.attention

    @property
    def stretch(self) -> float:
        """Factor of all cosines and sines."""
        return self.attention_factor * (1 + 0.1 * math.log(self.factor) if self.is_yarn else 1.0)


def _magnitude(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def scaling_of(build: Builder) -> Scaling:
    """Read the scaling from the metadata. Raises UnsupportedError for a kind that moec does not know."""
    metadata = build.metadata
    kind = metadata.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(
            f"{metadata.where}: rope.scaling.type is {kind!r}; expected none, linear, yarn, longrope"
        )
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 0.0)) or 1.0
    context = metadata.whole("context_length", 1 << 20)
    log_factor = metadata.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    return Scaling(
        kind,
        1.0 if kind == "none" else factor,
        metadata.whole("rope.scaling.original_context_length", context),
        metadata.number("rope.scaling.attn_factor", 1.0),
        metadata.number("rope.scaling.yarn_beta_fast", 32.0),
        metadata.number("rope.scaling.yarn_beta_slow", 1.0),
        log_factor,
    )


def frequencies(size: int, base: float, scaling: Scaling, factors: Array | None = None) -> Array:
    """Angles by which each of ``size / 2`` pairs rotates from one position to the next, in radians, float32."""
    pairs = np.arange(size // 2)
    plain = base ** (-2.0 * pairs / size) / (1.0 if factors is None else factors.astype(np.float64))
    scaled = plain / scaling.factor
    if scaling.is_yarn:
        low, high = (_turns_at(size, base, scaling, turns) for turns in (scaling.fast, scaling.slow))
        first, last = max(0, math.floor(low)), min(size - 1, math.ceil(high))
        kept = 1 - np.clip((pairs - first) / max(0.001, last - first), 0, 1)
        scaled = scaled * (1 - kept) + plain * kept
    return scaled.astype(np.float32)


def _turns_at(size: int, base: float, scaling: Scaling, turns: float) -> float:
    """Find the pair, as a fraction, that makes ``turns`` full turns within the original context."""
    return size * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(base))


class Rope:
    """Rotary embedding of the first ``size`` elements of heads [B,H,S,h]. ``interleaved``: pairs are neighbours, as in
    Llama's files; otherwise elements i and i + size/2."""

    def __init__(
        self,
        build: Builder,
        size: int,
        interleaved: bool,
        base: float | None = None,
        scaling: Scaling | None = None,
        label: str = "rope",
        is_near: bool = False,
    ) -> None:
        """``is_near``: of windowed layers that have sizes and frequencies of their own (Gemma 4), without factors.

        Raises UnsupportedError for a scaling that moec does not know, MoecError for factors that do not fit."""
        metadata = build.metadata
        key = "rope.dimension_count_swa" if is_near else "rope.dimension_count"
        self.size, self._has_factors = metadata.whole(key, size), not is_near
        if self.size % 2:
            raise UnsupportedError(f"{metadata.where}: {key} is {self.size}; expected an even number")
        self._build, self._interleaved, self._label = build, interleaved, label
        self.scaling = scaling_of(build) if scaling is None else scaling
        own_base = metadata.number("rope.freq_base", 10_000.0)
        self._base = own_base if base is None else base

    def __call__(self, x: ir.Value, label: str) -> ir.Value:
        attributes = {"interleaved": int(self._interleaved), "rotary_embedding_dim": self.size}
        return self._build.write.op("RotaryEmbedding", x, *self._angles, label=label, **attributes)

    @functools.cached_property
    def _angles(self) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines [B,S,size/2]. They are made when a layer first asks, because positions begin after its past
        keys."""
        build, write, label = self._build, self._build.write, self._label
        positions = write.op("Cast", build.positions, to=int(FLOAT), label=f"{label}.positions")
        column = write.op("Unsqueeze", positions, write.numbers(1))
        angles = write.op("Mul", column, self._turns(), label=f"{label}.angles")
        shape = write.op("Concat", build.batch, write.numbers(1, 1), axis=0)
        results = []
        for op_type in ("Cos", "Sin"):
            turned = write.scaled(write.op(op_type, angles), self.scaling.stretch, f"{label}.stretched")
            results.append(write.op("Expand", turned, shape, label=f"{label}.{op_type.lower()}"))
        return results[0], results[1]

    def _turns(self) -> ir.Value:
        """Frequencies [1,size/2]."""
        build, write, half = self._build, self._build.write, self.size // 2
        if self.scaling.kind == "longrope":
            long, short = (
                write.constant(self._row(build.numbers(f"rope_factors_{which}.weight", half)), f"rope.{which}")
                for which in ("long", "short")
            )
            is_long = write.op("Greater", build.total, write.numbers(self.scaling.original))
            return write.op("Where", is_long, long, short)
        name = "rope_freqs.weight"
        factors = build.numbers(name, half) if self._has_factors and build.has(name) else None
        return write.constant(self._row(factors), "rope.frequencies")

    def _row(self, factors: Array | None) -> Array:
        return frequencies(self.size, self._base, self.scaling, factors)[None]
