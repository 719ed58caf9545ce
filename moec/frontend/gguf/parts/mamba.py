"""Mamba 2 (arXiv 2405.21060): linear attention behind a convolution, where neighbouring heads share query and key."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.convolution import causal_convolution
from moec.frontend.gguf.parts.linear_attention import linear_attention, shared_by_heads


@dataclasses.dataclass(frozen=True)
class MambaSizes:
    """Sizes of Mamba 2: ``heads`` of ``inner / heads`` elements, ``groups`` of heads that share query and key, of
    ``state`` elements, and the inputs that a convolution sees (``taps``)."""

    heads: int
    groups: int
    inner: int
    state: int
    taps: int

    @property
    def convolved(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.groups * self.state

    @staticmethod
    def of(build: Builder) -> MambaSizes:
        """Read the sizes from metadata. Raises UnsupportedError for heads that do not fit."""
        metadata = build.metadata
        heads, groups = metadata.whole("ssm.time_step_rank"), metadata.whole("ssm.group_count")
        inner, state = metadata.whole("ssm.inner_size"), metadata.whole("ssm.state_size")
        if heads % groups or inner % heads:
            raise UnsupportedError(
                f"{metadata.where}: ssm.time_step_rank is {heads}; expected a multiple of ssm.group_count ({groups}) "
                f"that divides ssm.inner_size ({inner})"
            )
        return MambaSizes(heads, groups, inner, state, metadata.whole("ssm.conv_kernel", least=2))


def mamba2(build: Builder, x: ir.Value, layer: int, sizes: MambaSizes) -> ir.Value:
    """Compute what a layer's Mamba 2 adds to the residual stream, from its normalised input x [B,S,D]."""
    write, name, heads, inner = build.write, f"blk.{layer}", sizes.heads, sizes.inner
    joined = build.linear(x, f"{name}.ssm_in", build.width, inner + sizes.convolved + heads)
    gate, mixed, step = write.split(joined, inner, sizes.convolved, heads, axis=-1, label=f"{name}.ssm_in")
    mixed = causal_convolution(build, mixed, layer, f"{name}.ssm_conv1d", sizes.convolved, sizes.taps)
    mixed = write.op("Mul", mixed, write.op("Sigmoid", mixed), label=f"{name}.ssm_conv1d.activated")
    shared = sizes.groups * sizes.state
    inputs, key, query = write.split(mixed, inner, shared, shared, axis=-1, label=f"{name}.ssm")
    key, query = (
        shared_by_heads(
            build,
            write.reshape(part, 0, 0, sizes.groups, sizes.state),
            heads // sizes.groups,
            "grouped",
            f"{name}.ssm_{of}.shared",
        )
        for of, part in (("k", key), ("q", query))
    )
    step = write.op("Softplus", write.op("Add", step, build.vector(f"{name}.ssm_dt.bias", heads)))
    decay = write.op("Mul", step, _by_head(build, f"{name}.ssm_a", heads, flat=True), label=f"{name}.ssm_decay")
    apart = write.reshape(inputs, 0, 0, heads, inner // heads, label=f"{name}.ssm_inputs")
    value = write.op("Mul", apart, write.op("Unsqueeze", step, write.numbers(-1)), label=f"{name}.ssm_v")
    operands = query, key, write.reshape(value, 0, 0, inner)
    result = linear_attention(build, layer, operands, decay, None, (heads, sizes.state, inner // heads), 1.0)
    passed = write.op("Mul", apart, _by_head(build, f"{name}.ssm_d", heads))
    result = write.op("Add", result, write.reshape(passed, 0, 0, inner), label=f"{name}.ssm_attention.all")
    result = write.op("Mul", result, write.op("Mul", gate, write.op("Sigmoid", gate)), label=f"{name}.ssm_gated")
    result = _grouped_norm(build, result, f"{name}.ssm_norm", sizes)
    return build.linear(result, f"{name}.ssm_out", inner, build.width)


def _by_head(build: Builder, name: str, heads: int, flat: bool = False) -> ir.Value:
    """Store a number for each head, which files hold as [heads,1]; ``flat``: as [heads]."""
    numbers = build.numbers(name, heads, 1)
    return build.write.constant(numbers[:, 0] if flat else numbers, name)


def _grouped_norm(build: Builder, x: ir.Value, name: str, sizes: MambaSizes) -> ir.Value:
    """Normalise each group of [B,S,inner]; every element has a weight of its own."""
    write, size = build.write, sizes.inner // sizes.groups
    apart = build.unit_norm(write.reshape(x, 0, 0, sizes.groups, size), size)
    scaled = write.op("Mul", apart, build.vector(f"{name}.weight", sizes.groups, size))
    return write.reshape(scaled, 0, 0, sizes.inner, label=name)
