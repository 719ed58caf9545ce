"""The channels between the processes of a block: who writes, who reads, how wide and how deep they are.

Names are those of ``templates/moe_block.cpp.j2``, which declares them.
"""

from __future__ import annotations

import dataclasses

from moec.targets.hls.design import BEAT_BYTES, GATE_BITS, INPUT_BITS, RESULT_BITS, Design

EXPERT_BITS, COUNT_BITS = 8, 16
_TILE_BITS, _FLAGS = 16, 3
JOB_BITS = EXPERT_BITS + _TILE_BITS + COUNT_BITS + _FLAGS
ITEM_BITS = COUNT_BITS + GATE_BITS
BEAT_BITS = BEAT_BYTES * 8
MEMORY = "memory"

PROCESSES = (
    "read_tokens",
    "router",
    "select",
    "dispatch",
    "load_up",
    "load_down",
    "product_up",
    "product_down",
    "combine",
)
"""In the order of the data."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """A FIFO of ``depth`` words of ``bits``."""

    name: str
    producer: str
    consumer: str
    bits: int
    depth: int


def channels_of(design: Design) -> list[Channel]:
    shape, fifos = design.shape, design.fifos
    chunk = INPUT_BITS * design.lanes_in
    return [
        Channel("tokens_to_router", "read_tokens", "router", chunk, fifos.tokens),
        Channel("tokens_to_experts", "read_tokens", "product_up", chunk, fifos.tokens),
        Channel("logits", "router", "select", shape.experts * design.logit_bits, fifos.logits),
        Channel("routes", "select", "dispatch", shape.slots * (EXPERT_BITS + GATE_BITS), fifos.routes),
        Channel("jobs_load_up", "dispatch", "load_up", JOB_BITS, fifos.jobs),
        Channel("jobs_load_down", "dispatch", "load_down", JOB_BITS, fifos.jobs),
        Channel("jobs_up", "dispatch", "product_up", JOB_BITS, fifos.jobs),
        Channel("items_up", "dispatch", "product_up", ITEM_BITS, fifos.items),
        Channel("beats_up", "load_up", "product_up", BEAT_BITS, fifos.weights),
        Channel("beats_down", "load_down", "product_down", BEAT_BITS, fifos.weights),
        Channel("jobs_down", "product_up", "product_down", JOB_BITS, fifos.jobs),
        Channel("items_down", "product_up", "product_down", ITEM_BITS, fifos.items),
        Channel("hidden", "product_up", "product_down", INPUT_BITS * design.lanes_out, design.hidden_depth),
        Channel("jobs_combine", "product_down", "combine", JOB_BITS, fifos.jobs),
        Channel("items_combine", "product_down", "combine", ITEM_BITS, fifos.items),
        Channel("results", "product_down", "combine", RESULT_BITS * design.lanes_out, fifos.results),
    ]
