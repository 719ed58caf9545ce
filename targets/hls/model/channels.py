"""The channels of a whole model's two kernels, named as in both kinds of blocks."""

from __future__ import annotations

import dataclasses

from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.design.channels import BEAT_BITS, Channel, channels_of
from moec.targets.hls.model.design import ModelDesign

KERNELS = ("experts_layer", "attention_layer")
STRUCTS = ("experts_block", "attention_block")
"""The structs that the processes of each kernel are instantiated with."""
_OTHER_PROCESSES = {"read_stream": "read_inputs", "fork_tokens": "feed_tokens"}
"""Processes of a MoE block, and those that replace them here because inputs may be patches."""


def experts_channels(design: ModelDesign) -> list[Channel]:
    """The channels of the kernel of experts and linear layers."""
    channels = [Channel("beats_patches", "read_inputs", "feed_tokens", BEAT_BITS, design.experts.fifos.beats)]
    for channel in channels_of(design.experts):
        depth = design.items_down_depth if channel.name == "items_down" else channel.depth
        ends = process_of(channel.producer), process_of(channel.consumer)
        channels.append(Channel(channel.name, *ends, channel.bits, depth, channel.copies))
    return channels


def process_of(name: str) -> str:
    """The process of the kernel of experts in place of a MoE block's process of this name."""
    return _OTHER_PROCESSES.get(name, name)


def model_channels(design: ModelDesign) -> list[Channel]:
    """The channels of both kernels. Names begin with the kernel's, as in reports of a simulation."""
    attention = [] if design.attention is None else attention_channels(design.attention)
    kernels = zip(KERNELS, (experts_channels(design), attention), strict=True)
    return [
        dataclasses.replace(
            channel,
            name=f"{kernel}.{channel.name}",
            producer=f"{kernel}.{channel.producer}",
            consumer=f"{kernel}.{channel.consumer}",
        )
        for kernel, channels in kernels
        for channel in channels
    ]
