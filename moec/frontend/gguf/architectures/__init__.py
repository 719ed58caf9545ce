"""The architectures of llama.cpp that moec imports: one file for each family, built of shared parts.

A builder returns the logits [B,S,V]. Formulas and names of tensors and hyperparameters are those of llama.cpp
(``src/models/``).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.gguf.architectures import (
    dbrx,
    deepseek2,
    gemma,
    gemma4,
    gpt_oss,
    granite,
    hunyuan,
    lfm2,
    llama,
    llama4,
    minimax,
    nemotron_h,
    olmo2,
    phi,
    qwen2moe,
    qwen3next,
    sigmoid_routed,
)
from moec.frontend.gguf.graph.builder import Builder

_FILES = (
    llama,
    qwen2moe,
    olmo2,
    granite,
    gemma,
    gpt_oss,
    phi,
    sigmoid_routed,
    dbrx,
    lfm2,
    deepseek2,
    qwen3next,
    minimax,
    hunyuan,
    llama4,
    nemotron_h,
    gemma4,
)
ARCHITECTURES: dict[str, Callable[[Builder], ir.Value]] = {
    name: build for file in _FILES for name, build in file.ARCHITECTURES.items()
}
"""Builders by ``general.architecture``."""


def build(builder: Builder) -> ir.Value:
    """Build the graph of the file's architecture and return its logits. Raises UnsupportedError for an unknown one."""
    name = builder.metadata.architecture
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{builder.file.path}: is a model of the architecture {name[:60]!r}; expected {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name](builder)
