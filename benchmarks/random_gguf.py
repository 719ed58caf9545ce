"""MoE language models with random weights as GGUF files: quantised ones are random bits of numbers and equal scales."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

FLOATS = ("f32", "bf16")
BITS = {
    "f32": 32,
    "bf16": 16,
    "q4_0": 4.5,
    "q5_0": 5.5,
    "q8_0": 8.5,
    "q4_k": 4.5,
    "q5_k": 5.5,
    "q6_k": 6.5625,
    "mxfp4": 4.25,
    "iq4_nl": 4.5,
    "iq4_xs": 4.25,
}
SCALES = {
    "q4_0": {0: 1 / 8},
    "q5_0": {0: 1 / 16},
    "q8_0": {0: 1 / 128},
    "q4_k": {0: 1 / 8 / 32, 2: 1 / 32},
    "q5_k": {0: 1 / 16 / 32, 2: 1 / 32},
    "q6_k": {208: 1 / 32 / 64},
    "iq4_nl": {0: 1 / 128},
    "iq4_xs": {0: 1 / 32 / 128},
}
"""Float16 scales in a block, by their place, such that weights are about as large as 1."""
BESIDE_EXPERTS = {"mxfp4": "q8_0"}
"""Form of all other matrices, where it differs from that of the experts: in gpt-oss only these are MXFP4."""


def write_model(shape: Any, layers: int, form: str, path: pathlib.Path) -> None:
    """Write a file of a shape, a :class:`language_models.Shape`, with weights of a form of :data:`BITS`."""
    import gguf

    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_weights(writer, shape, layers, form)
    _add_parameters(writer, shape, layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer: Any, shape: Any, layers: int, form: str) -> None:
    random = np.random.default_rng(0)
    width, hidden, head = shape.width, shape.hidden, shape.width // shape.heads

    def matrix(name: str, *sizes: int) -> None:
        form_of_matrix = form if "_exps" in name else BESIDE_EXPERTS.get(form, form)
        data, kind = _matrix(random, form_of_matrix, sizes)
        writer.add_tensor(name, data, raw_dtype=kind)

    def vector(name: str, *sizes: int, mean: float = 1) -> None:
        writer.add_tensor(name, (mean + 0.1 * random.standard_normal(sizes)).astype(np.float32))

    matrix("token_embd.weight", shape.vocabulary, width)
    matrix("output.weight", shape.vocabulary, width)
    vector("output_norm.weight", width)
    for layer in range(layers):
        name = f"blk.{layer}"
        vector(f"{name}.attn_norm.weight", width)
        vector(f"{name}.ffn_norm.weight", width)
        for part, size in (("q", shape.heads), ("k", shape.key_heads), ("v", shape.key_heads)):
            matrix(f"{name}.attn_{part}.weight", size * head, width)
        matrix(f"{name}.attn_output.weight", width, width)
        if shape.architecture == "olmoe":
            vector(f"{name}.attn_q_norm.weight", width)
            vector(f"{name}.attn_k_norm.weight", shape.key_heads * head)
        vector(f"{name}.ffn_gate_inp.weight", shape.experts, width, mean=0)
        matrix(f"{name}.ffn_gate_exps.weight", shape.experts, hidden, width)
        matrix(f"{name}.ffn_up_exps.weight", shape.experts, hidden, width)
        matrix(f"{name}.ffn_down_exps.weight", shape.experts, width, hidden)


def _matrix(random: np.random.Generator, form: str, sizes: tuple[int, ...]) -> tuple[np.ndarray, Any]:
    """Make the bytes, or floats, of a matrix, and GGUF's name of their type."""
    import gguf

    kind = gguf.GGMLQuantizationType[form.upper()]
    if form in FLOATS:
        floats = random.standard_normal(sizes, dtype=np.float32) / np.float32(np.sqrt(sizes[-1]))
        return floats if form == "f32" else (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), kind
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (int(np.prod(sizes)) // block, size), dtype=np.uint8)
    if form == "q4_0":  # without the lowest of 16 numbers the mean is 0, so that tokens go to different experts
        data = np.where(data % 16, data, data + 8)
        data = np.where(data // 16, data, data + 128)
    if form == "mxfp4":  # a power of two as the scale of 32 numbers of up to 6
        data[:, 0] = 127 + round(np.log2(1 / 4 / np.sqrt(sizes[-1])))
    for place, share in SCALES.get(form, {}).items():
        data[:, place : place + 2] = np.array([2 * share / np.sqrt(sizes[-1])], np.float16).view(np.uint8)
    return data.reshape(*sizes[:-1], -1), kind


def _add_parameters(writer: Any, shape: Any, layers: int) -> None:
    head = shape.width // shape.heads
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("none")
    writer.add_context_length(1 << 16)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.chosen)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10_000.0)
    if shape.architecture == "granitemoe":
        writer.add_float32("granitemoe.attention.scale", 1 / head)
        writer.add_float32("granitemoe.embedding_scale", 12.0)
        writer.add_float32("granitemoe.residual_scale", 0.22)
        writer.add_float32("granitemoe.logit_scale", 6.0)
