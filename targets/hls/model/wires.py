"""Constants other than sizes that layers on the same hardware share: shifts, which are wires, and widths of sums."""

from __future__ import annotations

import dataclasses

from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.moe.quantize import QuantizedBlock


@dataclasses.dataclass(frozen=True)
class ExpertsWires:
    """Widths and shifts of layers of experts: the bits of logits, of the sums of both products and of the totals of
    their groups, and the right shifts of products. ``norm_shift`` is None where tokens are not normalised."""

    logit_bits: int
    up_sum_bits: int
    up_total_bits: int
    down_sum_bits: int
    down_total_bits: int
    up_shift: int
    down_shift: int
    norm_shift: int | None
    score_shift: int
    hidden_shift: int

    @staticmethod
    def of(block: QuantizedBlock) -> ExpertsWires:
        return ExpertsWires(
            logit_bits=block.logit_bits,
            up_sum_bits=block.up.sum_bits,
            up_total_bits=block.up.total_bits,
            down_sum_bits=block.down.sum_bits,
            down_total_bits=block.down.total_bits,
            up_shift=block.up.multipliers.shift,
            down_shift=block.down.multipliers.shift,
            norm_shift=None if block.norm is None else block.norm.shift,
            score_shift=block.score.shift,
            hidden_shift=block.hidden_multiplier.shift,
        )


@dataclasses.dataclass(frozen=True)
class AttentionWires:
    """Widths and shifts of attention layers. ``score_shift``: from scores to places in the table of powers;
    ``mixed_shift``: of the weighted sums of values; ``head_norm_shift``: of normalised keys and queries. ``latent_*``:
    of the latents that rows are computed from. A field without meaning for the block is 1."""

    up_sum_bits: int
    down_sum_bits: int
    up_shift: int
    down_shift: int
    norm_shift: int
    score_shift: int
    mixed_shift: int
    head_norm_shift: int
    latent_sum_bits: int
    latent_shift: int
    latent_norm_shift: int

    @staticmethod
    def of(block: QuantizedAttention) -> AttentionWires:
        norm, latents = None if block.turns is None else block.turns.key_norm, block.latents
        return AttentionWires(
            up_sum_bits=block.up.sum_bits,
            down_sum_bits=block.down.sum_bits,
            up_shift=block.up.multipliers.shift,
            down_shift=block.down.multipliers.shift,
            norm_shift=block.norm.shift,
            score_shift=block.score.shift,
            mixed_shift=block.mixed_shift,
            head_norm_shift=1 if norm is None else norm.shift,
            latent_sum_bits=1 if latents is None else latents.down.sum_bits,
            latent_shift=1 if latents is None else latents.down.multipliers.shift,
            latent_norm_shift=1 if latents is None else latents.key_norm.shift,
        )
