"""Memories on the chip: the arrays, channels and bus adapters of a design, and the kind of storage of each.

Rules, for an array of ``words`` x ``bits`` with one port to read and one to write:

- **LUT RAM** up to 64 words or 1024 bits in all: a CLB holds 64 words of 7 bits, in 8 LUTs (RAM64M8: UG974;
  UG574, Distributed RAM).
- **Block RAM** otherwise, in units of 18 Kbit, each 36 bits x 512 words, 18 x 1024, 9 x 2048, 4 x 4096, 2 x 8192 or
  1 x 16384 (UG573, Block RAM Resources, simple dual port); the shape that needs fewest.
- **UltraRAM** where a design asks for it, 72 bits x 4096 words each (UG573, UltraRAM Resources).

BIND_STORAGE pragmas in the generated sources ask for the storage chosen here, so the tool has no choice. A channel of
at most 2 words or 1024 bits is a shift register, 32 words per LUT and bit (UG1399, Storage Binding). An AXI master has
a buffer for all its outstanding bursts (UG1399, M_AXI Resources).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from moec.targets.hls.design.channels import BEAT_BITS, ITEM_BITS, PARAMETER_WORD_BITS, Channel, channels_of
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import (
    BEAT_BYTES,
    GATE_BITS,
    INPUT_BITS,
    MULTIPLIER_BITS,
    PARAMETER_BYTES,
    RESULT_BITS,
    ROUTER_WEIGHT_BITS,
)
from moec.targets.hls.hardware.cycles import select_steps

Storage = Literal["bram", "uram", "lut"]

BLOCK_RAM_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
"""Shapes of a block RAM of 18 Kbit: bits and words."""
ULTRA_RAM_SHAPE = (72, 4096)
_LUT_RAM_WORDS, _LUT_RAM_BITS, _LUTS_PER_CLB, _BITS_PER_CLB = 64, 1024, 8, 7
_SHIFT_REGISTER_WORDS, _SHIFT_REGISTER_BITS, _WORDS_PER_SHIFT_REGISTER = 2, 1024, 32

BURST_BEATS = 64
OUTSTANDING = {"tokens": 4, "results": 4, "up": 16, "down": 16}
"""Outstanding bursts per AXI master, as the INTERFACE pragmas of the top function declare; that of results also
writes."""
POWER_TABLE_WORDS, SIGMOID_TABLE_WORDS, TABLE_BITS = 1024, 2048, GATE_BITS + 1
INVERSE_ROOT_TABLE_WORDS = 2048
ACTIVATION_BITS = 16


@dataclasses.dataclass(frozen=True)
class Memory:
    """``copies`` equal memories of ``words`` x ``bits``. ``process``: the owner, or the writer of a channel.
    ``variable``: the array or channel in C++ that a pragma binds to this storage; '' if it needs no pragma."""

    name: str
    process: str
    bits: int
    words: int
    copies: int
    storage: Storage
    blocks: int
    """Block RAMs of 18 Kbit, or UltraRAMs, of all copies."""
    luts: int
    """The LUTs of all copies."""
    variable: str = ""

    @property
    def bram18(self) -> int:
        return self.blocks if self.storage == "bram" else 0

    @property
    def uram(self) -> int:
        return self.blocks if self.storage == "uram" else 0

    @property
    def implementation(self) -> str:
        """The name of the storage in a BIND_STORAGE pragma."""
        return "lutram" if self.storage == "lut" else self.storage


def block_rams(bits: int, words: int) -> int:
    """The number of block RAMs of 18 Kbit that hold an array."""
    return min(math.ceil(bits / width) * math.ceil(words / depth) for width, depth in BLOCK_RAM_SHAPES)


def ultra_rams(bits: int, words: int) -> int:
    width, depth = ULTRA_RAM_SHAPE
    return math.ceil(bits / width) * math.ceil(words / depth)


def memories_of(design: Design) -> list[Memory]:
    """All memories of a design: arrays, channels and adapters."""
    return [
        *_large_arrays(design),
        *_weights(design),
        *_routing(design),
        *_tables(design),
        *(() if design.shape.norm == "none" else norm_memories(design.width, design.router_lanes)),
        *channel_memories(channels_of(design)),
        *_adapters(design),
    ]


def array_memory(
    name: str,
    process: str,
    bits: int,
    words: int,
    copies: int = 1,
    storage: Storage | None = None,
    variable: str = "",
) -> Memory:
    """The memory of an array of this shape: in ``storage`` if given, else in LUT RAM if it is small, or block RAM."""
    small = words <= _LUT_RAM_WORDS or bits * words <= _LUT_RAM_BITS
    chosen = storage or ("lut" if small else "bram")
    if chosen == "lut":
        clbs = math.ceil(bits / _BITS_PER_CLB) * math.ceil(words / _LUT_RAM_WORDS)
        return Memory(name, process, bits, words, copies, chosen, 0, copies * clbs * _LUTS_PER_CLB, variable)
    blocks = block_rams(bits, words) if chosen == "bram" else ultra_rams(bits, words)
    return Memory(name, process, bits, words, copies, chosen, copies * blocks, 0, variable)


def _large_arrays(design: Design) -> list[Memory]:
    """The arrays that grow with the tokens of a call, in the storage that the design chooses for them."""
    words = design.shape.tokens * design.output_chunks
    lanes, storage = design.lanes_out, design.large_arrays
    return [
        array_memory("tokens", "product_up", INPUT_BITS * design.lanes_in, words, 1, storage, "rows"),
        array_memory("partial sums", "product_down", design.total_bits_down * lanes, words, 1, storage, "partial"),
        array_memory("combined results", "combine", design.combined_bits * lanes, words, 1, storage, "rows"),
    ]


def _weights(design: Design) -> list[Memory]:
    """Double buffers for the tiles of each matrix, their parameters and their multipliers."""
    words = design.hidden_out_chunks * design.input_chunks
    memories = []
    for process, banks, rows, channels, multipliers in (
        (
            "product_up",
            design.banks_up,
            design.projections * design.lanes_out,
            design.projections * design.hidden_tile,
            design.multiplier_beats_up,
        ),
        ("product_down", design.banks_down, design.lanes_out, design.width, design.multiplier_beats_down),
    ):
        memories.append(array_memory("weights", process, BEAT_BITS, words, 2 * banks, variable="weights"))
        memories.append(parameter_memory(process, rows, channels // rows))
        if multipliers:
            per_tile = -(-rows * MULTIPLIER_BITS // BEAT_BITS)
            memories.append(
                array_memory(
                    "multipliers", process, BEAT_BITS, multipliers // per_tile, 2 * per_tile, variable="multipliers"
                )
            )
    return memories


def parameter_memory(process: str, rows: int, words: int) -> Memory:
    """The double buffer for the parameters of a tile. A word holds those of neighbouring rows, as a beat does."""
    per_word = BEAT_BYTES // PARAMETER_BYTES
    bits, copies = per_word * PARAMETER_WORD_BITS, 2 * rows // per_word
    return array_memory("parameters", process, bits, words, copies, variable="parameters")


def _routing(design: Design) -> list[Memory]:
    shape, lanes = design.shape, design.router_lanes
    return [
        array_memory(
            "weights",
            "router",
            ROUTER_WEIGHT_BITS,
            design.router_turns * design.width // lanes,
            design.router_rows * lanes,
            variable="weights",
        ),
        *(
            [array_memory("logits", "select", design.logit_bits, shape.experts, variable="all")]
            if select_steps(shape) > shape.experts
            else ()
        ),
        *(
            [array_memory("choice biases", "select", design.logit_bits, shape.experts, variable="choice_biases")]
            if shape.biased_choice
            else ()
        ),
        array_memory("lists of tokens", "dispatch", ITEM_BITS, shape.tokens, shape.experts, variable="list"),
    ]


def _tables(design: Design) -> list[Memory]:
    """The tables of activations and scores. A memory has two ports, so two lanes share a copy."""
    shape = design.shape
    scores = shape.slots + (1 if scores_all(design) else 0)
    words = SIGMOID_TABLE_WORDS if shape.scoring == "sigmoid" else POWER_TABLE_WORDS
    return [
        array_memory(
            "activation", "product_up", ACTIVATION_BITS if shape.gated else INPUT_BITS, 256, -(-design.lanes_out // 2)
        ),
        array_memory("scores", "select", TABLE_BITS, words, -(-scores // 2)),
    ]


def scores_all(design: Design) -> bool:
    """Whether the scores of all experts are computed, not only those of the chosen ones."""
    shape = design.shape
    return select_steps(shape) > shape.experts or (shape.scoring == "sigmoid" and shape.biased_choice)


def channel_memories(channels: Iterable[Channel]) -> list[Memory]:
    memories = []
    for channel in channels:
        name, size = f"channel {channel.name}", channel.bits * channel.depth
        if channel.depth > _SHIFT_REGISTER_WORDS and size > _SHIFT_REGISTER_BITS:
            memories.append(
                array_memory(name, channel.producer, channel.bits, channel.depth, channel.copies, variable=channel.name)
            )
            continue
        luts = channel.copies * channel.bits * math.ceil(channel.depth / _WORDS_PER_SHIFT_REGISTER)
        memories.append(Memory(name, channel.producer, channel.bits, channel.depth, channel.copies, "lut", 0, luts))
    return memories


def norm_memories(width: int, lanes: int) -> list[Memory]:
    """The memories of a normalisation of tokens of ``width`` channels, ``lanes`` of them per cycle."""
    steps = width // lanes
    return [
        array_memory("inverse roots", "measure_tokens", MULTIPLIER_BITS, INVERSE_ROOT_TABLE_WORDS),
        array_memory("parameters", "normalize_tokens", PARAMETER_WORD_BITS, steps, lanes, variable="of_channel"),
        array_memory("token", "normalize_tokens", RESULT_BITS * lanes, steps, variable="token"),
    ]


def _adapters(design: Design) -> list[Memory]:
    has_norm = design.shape.norm != "none"
    owners = {
        "tokens": "read_inputs" if has_norm else "read_tokens",
        "results": "read_router",
        "up": "load_up",
        "down": "load_down",
    }
    copies = {"up": design.masters_up, "down": design.masters_down}
    adapters = [
        array_memory(f"adapter {name}", owners[name], BEAT_BITS, bursts * BURST_BEATS, copies.get(name, 1))
        for name, bursts in OUTSTANDING.items()
    ]
    words = OUTSTANDING["results"] * BURST_BEATS
    if has_norm:
        adapters.append(array_memory("adapter residual", "read_residual", BEAT_BITS, words))
    return [*adapters, array_memory("adapter results, writes", "write_tokens", BEAT_BITS, words)]
