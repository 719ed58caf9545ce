"""The hardware of a MoE block in numbers: what the layer asks for, and how much of it is computed at once.

All sizes that the generated C++ declares are derived here once; the estimator, the packing of weights and the templates
read them from here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Scoring = Literal["softmax", "sigmoid"]
Norm = Literal["none", "layer", "rms"]
LargeArrays = Literal["bram", "uram"]
BEAT_BYTES = 64
"""The bytes of one transfer on an AXI bus of 512 bits."""
PARAMETER_BYTES = 8
"""The bytes of an output channel's bias (32 bits), multiplier (16 bits) and padding."""
MOST_ACCUMULATOR_BITS = 27
"""One multiplier of a DSP48E2 takes 27 x 18 bits; a wider sum takes two to be scaled."""
MOST_SUM_BITS = 32
"""Those of the bias that a sum begins with."""
MOST_WORD_BITS = 4096
"""Of a channel: Vitis HLS aggregates no wider struct (its message 214-256)."""
MOST_EXPERTS = 510
"""Numbers of 9 bits, one of which stands for nobody."""
MOST_STAGES = 60
"""The most stages of a pipeline, from its reads to its last write, that channels are deep enough for. The longest way
is through a divider of 34 bits, which is as deep, and some multiplications around it."""
USUAL_STAGES = 20
"""The stages of a pipeline that cycles are counted with: what a reader expects of these loops; synthesis decides."""
FRACTION_BITS = 6
"""Of totals of groups: what rounding each group adds is small beside the rounding of the result."""
_USUAL_TOTAL_BITS = 10
"""Beyond a result's: the fraction of a total, and how far inputs that never come may carry it."""
INPUT_BITS, ROUTER_WEIGHT_BITS, MULTIPLIER_BITS, GATE_BITS, RESULT_BITS = 8, 16, 16, 17, 16


def bits_for(count: int) -> int:
    """Bits that tell ``count`` things apart: the logarithm to base 2, rounded up."""
    return (count - 1).bit_length() if count > 1 else 0


def accumulator_bits(terms: int, weight_bits: int) -> int:
    """The bits that a sum of ``terms`` products of int8 and a weight needs: one is for the sign, and one for a bias as
    large."""
    return (INPUT_BITS - 1) + (weight_bits - 1) + bits_for(terms) + 2


def depth_beside(iterations_per_word: int, iterations_behind: int = 0) -> int:
    """The depth of a channel whose reader takes each word together with one of another channel that the same loop
    writes ``iterations_behind`` iterations later, and in a later stage. A pipeline that stalls (``style=stp``) moves as
    a whole: until that other word has left its last stage, there must be room for all that its first stages write.
    """
    return (MOST_STAGES + iterations_behind) // iterations_per_word + 2


def multiplier_beats(rows: int, places: int) -> int:
    """Transfers of the multipliers of ``rows`` at each of ``places``: a beat is one place, a part, or several."""
    per_beat = BEAT_BYTES * 8 // MULTIPLIER_BITS
    return -(-rows // per_beat) * -(-places // max(1, per_beat // rows))


def multiplier_banks(rows: int) -> int:
    """Memories that hold the multipliers of ``rows``."""
    return -(-rows * MULTIPLIER_BITS // (BEAT_BYTES * 8))


def stripe(beats: int, masters: int, banks: int) -> int:
    """What the first of the masters transfers of ``beats`` that go to ``banks`` memories in turns: a memory has one."""
    return beats // min(masters, banks)


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """What a MoE layer asks of any hardware. Sizes are those of the model, before padding.

    ``tokens``: at most, per call. ``shared``: experts that every token goes to, beside the ``slots`` it chooses of
    ``experts``; they have the sizes of the others. ``gated``: ``hidden = activation(gate) * up``, which doubles the
    first product.
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
    """How many of the ``groups`` of experts are kept: their experts stay candidates."""
    group_sum: bool = False
    """Whether a group is as good as the sum of its two best experts, else as its best."""
    biased_choice: bool = False
    """Whether a bias moves the choice of experts, and not their weights."""
    weight_bits: Literal[4, 8] = 8
    group: int = 0
    """How many inputs share a scale of a weight; 0: all of them."""
    norm: Norm = "none"
    """How tokens are normalised; they are then a residual stream that the result is added to."""
    up_sum_bits: int | None = None
    down_sum_bits: int | None = None
    """Bits of the products' sums, each of a group, where the weights are known; without them, what any could need."""
    up_total_bits: int | None = None
    down_total_bits: int | None = None
    """The same of the sums of all groups."""

    @property
    def all_experts(self) -> int:
        return self.experts + self.shared

    @property
    def all_slots(self) -> int:
        return self.slots + self.shared


@dataclasses.dataclass(frozen=True)
class Fifos:
    """Depths of the channels between processes, in words: what keeps processes busy. Where pipelines demand more, they
    are those of :class:`Design`."""

    tokens: int = 32
    logits: int = 2
    routes: int = 16
    jobs: int = 4
    items: int = 8
    weights: int = 128
    """Two bursts of 4 KiB; tiles themselves are buffered twice."""
    results: int = 4
    measured: int = 2
    beats: int = 2
    """From and to memory, whose masters hold bursts themselves."""


@dataclasses.dataclass(frozen=True)
class Design:
    """One way to build a block.

    ``lanes_in`` x ``lanes_out`` products are computed per cycle in each of the two arrays, twice as many in the first
    where the block is gated. ``hidden_tile`` hidden units are computed, used and forgotten at a time: their weights are
    what is loaded at once. ``router_lanes`` inputs are multiplied with the weights of ``router_experts`` experts at
    once, which take turns; of all where it is None.
    ``masters_up`` and ``masters_down`` AXI masters bring the weights of the two products, beat by beat in turns.
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
    """What holds tokens, partial sums and combined results."""
    router_experts: int | None = None

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
        """In which an array computes a token of a tile."""
        return self.hidden_out_chunks * self.input_chunks

    @property
    def router_rows(self) -> int:
        """Experts whose logits are computed at once, and go to the choice in one word."""
        return self.router_experts or max(self.shape.experts, 1)

    @property
    def router_turns(self) -> int:
        """Words of the logits of a token."""
        return -(-self.shape.experts // self.router_rows)

    @property
    def logits_depth(self) -> int:
        """Words of the channel of logits: those of as many tokens as ``fifos`` say, for the last step of a token sends
        them one per cycle."""
        return self.fifos.logits * max(self.router_turns, 1)

    @property
    def steps_depth(self) -> int:
        """Words of the channel of tokens that are normalised, whose measures come when their last step is through."""
        return max(self.fifos.tokens, depth_beside(1))

    @property
    def items_down_depth(self) -> int:
        """Words of the channel of tokens to the second product, which takes each with its first hidden units."""
        return max(self.fifos.items, depth_beside(self.item_cycles, self.input_chunks - 1))

    @property
    def items_combine_depth(self) -> int:
        """Words of the channel of tokens to the sums, each of which is taken with its first results."""
        return max(self.fifos.items, depth_beside(self.item_cycles, self.hidden_in_chunks - 1))

    @property
    def lane_bytes(self) -> int:
        """Bytes of weights that one array takes per cycle: a column of ``lanes_in`` for each of ``lanes_out`` rows."""
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
        """Transfers of the busiest master of the first product for one tile."""
        return stripe(self.parameter_beats_up, self.masters_up, self.projections * self.parameter_banks) + (
            stripe(self.multiplier_beats_up, self.masters_up, multiplier_banks(self.projections * self.lanes_out))
            + self.weight_beats_up // self.masters_up
        )

    @property
    def job_beats_down(self) -> int:
        """The same of the second product."""
        multipliers = stripe(self.multiplier_beats_down, self.masters_down, multiplier_banks(self.lanes_out))
        return multipliers + self.weight_beats_down // self.masters_down

    @property
    def result_beats_down(self) -> int:
        """And for the results of an expert."""
        return stripe(self.parameter_beats_down, self.masters_down, self.parameter_banks)

    @property
    def parameter_banks(self) -> int:
        """Memories that hold the parameters of ``lanes_out`` rows."""
        return self.lanes_out * PARAMETER_BYTES // BEAT_BYTES

    @property
    def weight_beats_up(self) -> int:
        """Transfers of the first matrix's weights for one tile."""
        return self.projections * self.weight_beats_down

    @property
    def weight_beats_down(self) -> int:
        return self.width * self.hidden_tile * self.shape.weight_bits // 8 // BEAT_BYTES

    @property
    def parameter_beats_up(self) -> int:
        """Transfers of the biases and multipliers of a tile's rows."""
        return -(-self.projections * self.hidden_tile * PARAMETER_BYTES // BEAT_BYTES)

    @property
    def parameter_beats_down(self) -> int:
        """The same of an expert's results."""
        return -(-self.width * PARAMETER_BYTES // BEAT_BYTES)

    @property
    def multiplier_beats_up(self) -> int:
        """Transfers of the multipliers of a tile's groups."""
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
    def norm_sum_bits(self) -> int:
        """Bits of the sum of a token's int16 channels."""
        return RESULT_BITS + bits_for(self.shape.width)

    @property
    def combined_bits(self) -> int:
        """Bits of a sum of results times gates."""
        return RESULT_BITS + GATE_BITS + bits_for(self.shape.all_slots)

    def why_not(self) -> str | None:
        """The reason why the templates cannot be instantiated with these numbers, or None."""
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
