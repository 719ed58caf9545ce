"""The hardware of a MoE block in numbers: the shape of the layer, and how much of it is computed in parallel.

All sizes that the generated C++ declares are derived here. The estimator, the packing of weights and the templates read
them from here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from moec.targets.hls.design.numbers import (
    BEAT_BYTES,
    GATE_BITS,
    INPUT_BITS,
    MOST_SUM_BITS,
    MOST_WORD_BITS,
    PARAMETER_BYTES,
    RESULT_BITS,
    ROUTER_WEIGHT_BITS,
    Fifos,
    Norm,
    accumulator_bits,
    bits_for,
    depth_beside,
    multiplier_banks,
    multiplier_beats,
    padded,
    stripe,
)

Scoring = Literal["softmax", "sigmoid"]
LargeArrays = Literal["bram", "uram"]
MOST_EXPERTS = 510
"""Ids have 9 bits; one value means no expert."""
_USUAL_TOTAL_BITS = 10
"""Bits of a total beyond those of a result: its fraction, and headroom for inputs larger than any in practice."""


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """The shape of a MoE layer, whatever the hardware. Sizes are those of the model, before padding.

    ``tokens``: the most per call. Each token goes to ``slots`` of the ``experts``, and to all ``shared`` ones, which
    have the same sizes. ``gated``: ``hidden = activation(gate) * up``, which doubles the first product.
    """

    tokens: int
    width: int
    hidden: int
    experts: int
    slots: int
    gated: bool = False
    shared: int = 0
    scoring: Scoring = "softmax"
    normalized: bool = True
    """Whether weights of a token are divided by their sum over the chosen experts."""
    groups: int = 1
    groups_kept: int = 1
    """The number of ``groups`` whose experts a token may choose from."""
    group_sum: bool = False
    """Whether groups are ranked by the sum of their two best experts, instead of by their best."""
    biased_choice: bool = False
    """Whether a bias is added to the scores that choose experts, but not to those that weigh them."""
    weight_bits: Literal[4, 8] = 8
    group: int = 0
    """The number of inputs that share a scale of a weight; 0: all of them."""
    norm: Norm = "none"
    """The normalisation of tokens. With one, tokens are a residual stream that the result is added to."""
    up_sum_bits: int | None = None
    down_sum_bits: int | None = None
    """Bits of the products' sums, per group, as known weights need them; None for those that any weights may need."""
    up_total_bits: int | None = None
    down_total_bits: int | None = None
    """The same for the sums of all groups."""

    @property
    def all_experts(self) -> int:
        return self.experts + self.shared

    @property
    def all_slots(self) -> int:
        return self.slots + self.shared


@dataclasses.dataclass(frozen=True)
class Design:
    """One way to build a block.

    Each of the two arrays computes ``lanes_in`` x ``lanes_out`` products per cycle; the first computes twice as many in
    a gated block. ``hidden_tile`` hidden units are computed and consumed at a time; their weights are loaded together.
    The router multiplies ``router_lanes`` inputs with the weights of ``router_experts`` experts at once, then of the
    next ones; None: of all experts at once. ``masters_up`` and ``masters_down`` AXI masters bring the weights of the
    two products, beat by beat in turn.
    """

    shape: BlockShape
    lanes_in: int = 16
    lanes_out: int = 16
    hidden_tile: int = 64
    router_lanes: int = 4
    masters_up: int = 1
    masters_down: int = 1
    fifos: Fifos = dataclasses.field(default_factory=Fifos)
    large_arrays: LargeArrays = "bram"
    """The storage of tokens, partial sums and combined results."""
    router_experts: int | None = None
    linear: bool = False
    """Whether the kernel also computes layers that are the second product alone."""

    @property
    def width(self) -> int:
        """Channels of a token, padded."""
        return padded(self.shape.width, max(self.lanes_in, self.lanes_out))

    @property
    def hidden(self) -> int:
        """Units of an expert, padded."""
        return padded(self.shape.hidden, self.hidden_tile)

    @property
    def tiles(self) -> int:
        """Hidden tiles of an expert."""
        return self.hidden // self.hidden_tile

    @property
    def projections(self) -> int:
        """Rows of the first matrix per hidden unit: gate and up, or up alone."""
        return 2 if self.shape.gated else 1

    @property
    def input_chunks(self) -> int:
        """Steps of ``lanes_in`` through a token."""
        return self.width // self.lanes_in

    @property
    def output_chunks(self) -> int:
        """Steps of ``lanes_out`` through a result."""
        return self.width // self.lanes_out

    @property
    def hidden_out_chunks(self) -> int:
        """Steps of ``lanes_out`` through the hidden units of a tile."""
        return self.hidden_tile // self.lanes_out

    @property
    def hidden_in_chunks(self) -> int:
        """Steps of ``lanes_in`` through the hidden units of a tile."""
        return self.hidden_tile // self.lanes_in

    @property
    def hidden_depth(self) -> int:
        """Words of the channel between the products: the hidden units of two items in a tile."""
        return 2 * self.hidden_out_chunks

    @property
    def item_cycles(self) -> int:
        """Cycles in which an array computes a token of a tile."""
        return self.hidden_out_chunks * self.input_chunks

    @property
    def router_rows(self) -> int:
        """Experts whose logits are computed at once and sent in one word."""
        return self.router_experts or max(self.shape.experts, 1)

    @property
    def router_turns(self) -> int:
        """Words of the logits of a token."""
        return -(-self.shape.experts // self.router_rows)

    @property
    def logits_depth(self) -> int:
        """Words of the channel of logits, for ``fifos.logits`` tokens: after its last step, a token sends its words one
        per cycle."""
        return self.fifos.logits * max(self.router_turns, 1)

    @property
    def steps_depth(self) -> int:
        """Words of the channel of tokens to be normalised, which wait until their sums are complete."""
        return max(self.fifos.tokens, depth_beside(1))

    @property
    def items_down_depth(self) -> int:
        """Words of the channel of tokens to the second product, which takes each with its first hidden units. A layer
        without a first product passes hidden units straight on, so a token takes only as many steps as it has chunks in
        a tile."""
        depth = max(self.fifos.items, depth_beside(self.item_cycles, self.input_chunks - 1))
        return max(depth, depth_beside(self.hidden_out_chunks)) if self.linear else depth

    @property
    def items_combine_depth(self) -> int:
        """Words of the channel of tokens to the combination, which takes each with its first results."""
        return max(self.fifos.items, depth_beside(self.item_cycles, self.hidden_in_chunks - 1))

    @property
    def lane_bytes(self) -> int:
        """Bytes of weights that one array takes per cycle: ``lanes_in`` for each of ``lanes_out`` rows."""
        return self.lanes_in * self.lanes_out * self.shape.weight_bits // 8

    @property
    def banks_up(self) -> int:
        """Memories of one beat per cycle that feed the first array."""
        return self.projections * self.banks_down

    @property
    def banks_down(self) -> int:
        return self.lane_bytes // BEAT_BYTES

    @property
    def job_beats_up(self) -> int:
        """Beats of the busiest master of the first product for one tile."""
        return stripe(self.parameter_beats_up, self.masters_up, self.projections * self.parameter_banks) + (
            stripe(self.multiplier_beats_up, self.masters_up, multiplier_banks(self.projections * self.lanes_out))
            + self.weight_beats_up // self.masters_up
        )

    @property
    def job_beats_down(self) -> int:
        """The same for the second product."""
        multipliers = stripe(self.multiplier_beats_down, self.masters_down, multiplier_banks(self.lanes_out))
        return multipliers + self.weight_beats_down // self.masters_down

    @property
    def result_beats_down(self) -> int:
        """Beats of the busiest master of the second product for the parameters of an expert's results."""
        return stripe(self.parameter_beats_down, self.masters_down, self.parameter_banks)

    @property
    def parameter_banks(self) -> int:
        """Memories that hold the parameters of ``lanes_out`` rows."""
        return self.lanes_out * PARAMETER_BYTES // BEAT_BYTES

    @property
    def weight_beats_up(self) -> int:
        """Beats of the first matrix's weights for one tile."""
        return self.projections * self.weight_beats_down

    @property
    def weight_beats_down(self) -> int:
        return self.width * self.hidden_tile * self.shape.weight_bits // 8 // BEAT_BYTES

    @property
    def parameter_beats_up(self) -> int:
        """Beats of the biases and multipliers of a tile's rows."""
        return -(-self.projections * self.hidden_tile * PARAMETER_BYTES // BEAT_BYTES)

    @property
    def parameter_beats_down(self) -> int:
        """The same for an expert's results."""
        return -(-self.width * PARAMETER_BYTES // BEAT_BYTES)

    @property
    def multiplier_beats_up(self) -> int:
        """Beats of the multipliers of a tile's groups."""
        groups = -(-self.width // self.shape.group) if self.shape.group else 0
        return multiplier_beats(self.projections * self.lanes_out, self.hidden_out_chunks * groups)

    @property
    def multiplier_beats_down(self) -> int:
        groups = self.hidden_tile // self.shape.group if self.shape.group else 0
        return multiplier_beats(self.lanes_out, self.output_chunks * groups)

    @property
    def sum_bits_up(self) -> int:
        terms = self.shape.group or self.width
        return self.shape.up_sum_bits or accumulator_bits(terms, self.shape.weight_bits)

    @property
    def sum_bits_down(self) -> int:
        terms = self.shape.group or self.hidden
        return self.shape.down_sum_bits or accumulator_bits(terms, self.shape.weight_bits)

    @property
    def total_bits_up(self) -> int:
        if not self.shape.group:
            return self.sum_bits_up
        return self.shape.up_total_bits or INPUT_BITS + _USUAL_TOTAL_BITS

    @property
    def total_bits_down(self) -> int:
        if not self.shape.group:
            return self.sum_bits_down
        return self.shape.down_total_bits or RESULT_BITS + _USUAL_TOTAL_BITS

    @property
    def logit_bits(self) -> int:
        return accumulator_bits(self.width, ROUTER_WEIGHT_BITS)

    @property
    def combined_bits(self) -> int:
        """Bits of a sum of results times gates."""
        return RESULT_BITS + GATE_BITS + bits_for(self.shape.all_slots)

    def why_not(self) -> str | None:
        """The reason why the templates cannot be instantiated with these numbers; None if they can."""
        if self.lanes_in != self.lanes_out:
            return f"arrays of {self.lanes_in} x {self.lanes_out} lanes; the processes pass chunks on, which are square"
        if self.lanes_in not in (8, 16, 32):
            return f"{self.lanes_in} lanes; expected 8, 16 or 32, so that a chunk of results fits into a beat"
        if self.lane_bytes % BEAT_BYTES:
            return f"{self.lane_bytes} bytes of weights per step are no whole number of beats of {BEAT_BYTES}"
        if self.hidden_tile % self.lanes_out:
            return f"tiles of {self.hidden_tile} hidden units are no multiple of {self.lanes_out} lanes"
        if self.shape.group and self.hidden_tile % self.shape.group:
            return f"tiles of {self.hidden_tile} hidden units are no multiple of a group of {self.shape.group}"
        if self.banks_down % self.masters_down or self.banks_up % self.masters_up:
            return (
                f"{self.masters_up} and {self.masters_down} masters of {self.banks_up} and {self.banks_down} memories, "
                "which have one each"
            )
        if (reason := self._why_no_router()) is not None:
            return reason
        if self.sum_bits_down > MOST_SUM_BITS or self.sum_bits_up > MOST_SUM_BITS:
            widest = max(self.sum_bits_up, self.sum_bits_down)
            return f"sums need {widest} bits; they have up to {MOST_SUM_BITS}, as their biases"
        if self.shape.all_experts > MOST_EXPERTS or self.shape.tokens > 65535:
            return f"{self.shape.all_experts} experts and {self.shape.tokens} tokens; there are 9 and 16 bits for them"
        return None

    def _why_no_router(self) -> str | None:
        if self.lanes_in % self.router_lanes:
            return f"{self.router_lanes} router lanes do not divide {self.lanes_in}"
        if self.router_rows * self.logit_bits > MOST_WORD_BITS:
            return (
                f"logits of {self.router_rows} experts at once, of {self.logit_bits} bits each; a channel has words of "
                f"up to {MOST_WORD_BITS}"
            )
        return None
