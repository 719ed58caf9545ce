"""The channels of a model's kernels, named as in reports of a simulation."""

from __future__ import annotations

import dataclasses

from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.design.channels import Channel, channels_of
from moec.targets.hls.model.design import ModelDesign

KERNELS = ("experts_layer", "attention_layer")


def model_channels(design: ModelDesign) -> list[Channel]:
    """The channels of all kernels. Where layers run one after the other, names begin with the kernel's."""
    experts = [] if design.moe is None else channels_of(design.moe)
    attention = [] if design.attention is None else attention_channels(design.attention)
    if design.is_block:
        return [*experts, *attention]
    return [
        dataclasses.replace(
            channel,
            name=f"{kernel}.{channel.name}",
            producer=f"{kernel}.{channel.producer}",
            consumer=f"{kernel}.{channel.consumer}",
        )
        for kernel, channels in zip(KERNELS, (experts, attention), strict=True)
        for channel in channels
    ]
