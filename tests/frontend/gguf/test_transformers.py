"""Logits of transformers' models, whose tensors are renamed and arranged as llama.cpp's converter does it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import moec
from moec.frontend.gguf import import_file
from moec.frontend.gguf.architectures import llama4
from moec.ir.interpreter import run

from .gguf_files import stored, write_file

Array = np.ndarray[Any, Any]
Arranged = Iterator[tuple[str, Array]]
IDS = np.array([[3, 17, 0, 39, 22, 5, 11, 30, 8, 1, 25, 13, 2, 2]])
D, HEADS, GROUPS, HEAD, EXPERTS, OWN = 32, 4, 2, 8, 6, 32
KEYS, VALUES, TAPS = 2, 4, 4
"""Heads of keys and of values, and taps of the convolution, of gated delta nets."""
KEY, TURNED, RANK = 8, 4, 16
"""Elements of a latent key without and with rotary embedding, and sizes of the latents."""
LAYERS = 4
SIZES: dict[str, Any] = {
    "hidden_size": D,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "vocab_size": 40,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
}
ROUTED: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": OWN}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
PART_OF_A_HEAD = ROPE | {"partial_rotary_factor": 0.5}
DELTA = {"linear_num_key_heads": KEYS, "linear_num_value_heads": VALUES}
DELTA |= {"linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD, "linear_conv_kernel_dim": TAPS}

NAMES = {
    r"model\.embed(_token|ding)s\.": "token_embd.",
    r"model\.norm(_f)?\.": "output_norm.",
    r"lm_head\.": "output.",
    r"model\.layers\.": "blk.",
    r"input_layernorm|(?<=\d\.)norm(?=\.)": "attn_norm",
    r"(self_attn|mixer)\.(q|k|v)_proj": r"attn_\2",
    r"(self_attn|mixer)\.o_proj": "attn_output",
    r"self_attn\.(q|k)_norm": r"attn_\1_norm",
    r"self_attn\.(q_a|kv_a)_layernorm": r"attn_\1_norm",
    r"self_attn\.(q_a|q_b|kv_b)_proj": r"attn_\1",
    r"self_attn\.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    r"self_attn\.indexer\.wq_b": "indexer.attn_q_b",
    r"self_attn\.indexer\.wk": "indexer.attn_k",
    r"self_attn\.indexer\.weights_proj": "indexer.proj",
    r"self_attn\.indexer\.k_norm": "indexer.k_norm",
    r"self_attn\.(q|k)\w+_layernorm": r"attn_\1_norm",
    r"(linear_attn|mixer)\.(conv1d|norm)": r"ssm_\2",
    r"(linear_attn|mixer)\.(in|out)_proj\.": r"ssm_\2.",
    r"(linear_attn|mixer)\.dt_bias": "ssm_dt.bias",
    r"(linear_attn|mixer)\.A_log": "ssm_a",
    r"mixer\.D$": "ssm_d",
    r"linear_attn\.in_proj_(qkv|z)\.": lambda match: {"qkv": "attn_qkv.", "z": "attn_gate."}[match[1]],
    r"linear_attn\.in_proj_(ba|b|a)\.": lambda match: f"ssm_{({'b': 'beta', 'a': 'alpha'}).get(match[1], 'ba')}.",
    r"\w+\.(gate\.)?e_score_correction_bias": "exp_probs_b.bias",
    r"(mlp|mixer)\.gate\.(wg\.)?|feed_forward\.router\.|router\.proj\.": "ffn_gate_inp.",
    r"mlp\.shared_expert_gate": "ffn_gate_inp_shexp",
    r"\w+\.shared_(experts?|mlp)\.(\w+)_proj": r"ffn_\2_shexp",
    r"((mlp|mixer|feed_forward)\.)?experts\.(\w+)_proj": r"ffn_\3_exps.weight",
    r"(mlp|feed_forward)\.(\w+)_proj": r"ffn_\2",
    r"router\.scale": "ffn_gate_inp.scale",
    r"router\.per_expert_scale": "ffn_down_exps.scale",
    r"pre_feedforward_layernorm\.": "ffn_norm.",
    r"post_feedforward_layernorm\.": "post_ffw_norm.",
    r"(pre|post)_feedforward_layernorm_": r"\1_ffw_norm_",
    r"layer_scalar": "layer_output_scale.weight",
    r"per_layer_input_gate": "inp_gate",
    r"per_layer_projection(?=\.weight)": "proj",
    r"post_per_layer_input_norm": "post_norm",
    r"token_embd\.per_layer|model\.embed_tokens_per_layer": "per_layer_token_embd",
    r"model\.per_layer_model_projection": "per_layer_model_proj",
    r"model\.(per_layer_)projection_norm": r"\1proj_norm",
}
"""Names of tensors in files by patterns of those in transformers."""


def plain(name: str, array: Array) -> Arranged:
    """Split experts that hold gate and up, as the converter does; everything else stays."""
    if "gate_up" in name:
        for part, half in zip(("gate", "up"), np.split(array, 2, axis=1), strict=True):
            yield name.replace("gate_up", part), half
    else:
        yield name, array


def transposed(name: str, array: Array) -> Arranged:
    yield from plain(name, array.swapaxes(1, 2) if array.ndim == 3 else array)


def recurrent(name: str, array: Array) -> Arranged:
    """Arrange tensors of recurrent layers: ``ssm_a`` is a rate and not a logarithm."""
    if name.endswith("ssm_a"):
        array = -np.exp(array)
    yield from plain(name, array.squeeze() if "conv1d" in name or "inp_shexp" in name else array)


def with_one(name: str, array: Array) -> Arranged:
    """Arrange tensors of Qwen3-Next: norms hold what is added to 1, the input matrix is in the order of heads."""
    if name.endswith("norm.weight") and "ssm" not in name:
        array = array + 1
    if "in_proj_qkvz" in name:
        each = VALUES // KEYS * HEAD
        heads = np.split(array.reshape(KEYS, -1, D), np.cumsum([HEAD, HEAD, each]), axis=1)
        query, key, value, gate = (part.reshape(-1, D) for part in heads)
        prefix = name.split(".linear")[0]
        yield f"{prefix}.attn_qkv.weight", np.concatenate([query, key, value])
        yield f"{prefix}.attn_gate.weight", gate
    else:
        yield from recurrent(name, array)


def tiled(name: str, array: Array) -> Arranged:
    """Arrange tensors of Qwen3.5: the heads of values go by their place beside a key first."""

    def turned(rows: Array, axis: int = 0) -> Array:
        rows = np.moveaxis(rows, axis, 0)
        apart = rows.reshape(KEYS, VALUES // KEYS, -1, *rows.shape[1:])
        return np.moveaxis(apart.swapaxes(0, 1).reshape(rows.shape), 0, axis)

    if "qkv" in name or "conv1d" in name:
        first, values = np.split(array, [2 * KEYS * HEAD])
        array = np.concatenate([first, turned(values)])
    elif re.search(r"attn_gate|ssm_(beta|alpha|a$|dt)", name):
        array = turned(array)
    elif "ssm_out" in name:
        array = turned(array, axis=1)
    yield from with_one(name, array)


def mamba(name: str, array: Array) -> Arranged:
    if re.search(r"ssm_(a|d)$", name):
        array = array[:, None]
    yield from recurrent(name, array.reshape(GROUPS, -1) if "ssm_norm" in name else array)


def absorbed(name: str, array: Array) -> Arranged:
    """Split the matrix that makes keys and values of the latent by head."""
    if "attn_kv_b" in name:
        key, value = np.split(array.reshape(HEADS, KEY + HEAD, RANK), [KEY], axis=1)
        yield name.replace("kv_b", "k_b"), key.swapaxes(1, 2)
        yield name.replace("kv_b", "v_b"), value
    else:
        yield from plain(name, array)


QWEN = {**SIZES, **ROUTED, **DELTA, "shared_expert_intermediate_size": 16, "rope_parameters": PART_OF_A_HEAD}
QWEN_KEYS = {"expert_feed_forward_length": OWN, "expert_shared_feed_forward_length": 16, "rope.dimension_count": 4}
QWEN_KEYS |= {"ssm.group_count": KEYS, "ssm.time_step_rank": VALUES, "ssm.state_size": HEAD, "ssm.conv_kernel": TAPS}
QWEN_KEYS |= {"ssm.inner_size": VALUES * HEAD, "attention.layer_norm_rms_epsilon": 1e-6}
GEMMA = {**SIZES, "global_head_dim": 16, "intermediate_size": 64, "sliding_window": 5}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA_KEYS = {"attention.key_length": 16, "attention.value_length": 16, "rope.freq_base": 1e6}
GEMMA_KEYS |= {"attention.key_length_swa": HEAD, "attention.value_length_swa": HEAD, "attention.sliding_window": 5}
GEMMA_KEYS |= {"rope.dimension_count": 16, "rope.dimension_count_swa": HEAD, "rope.freq_base_swa": 10_000.0}
GEMMA_KEYS |= {"attention.sliding_window_pattern": [True, False] * 2, "attention.layer_norm_rms_epsilon": 1e-6}
MINIMAX = {**SIZES, "intermediate_size": OWN, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}
LLAMA4 = {**MINIMAX, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2, "rope_parameters": ROPE}
LLAMA4 |= {"attention_chunk_size": 4, "floor_scale": 4}
NEMOTRON = {**SIZES, "layers_block_type": ["mamba", "moe", "attention", "moe"], "moe_intermediate_size": OWN}
NEMOTRON |= {"moe_shared_expert_intermediate_size": 48, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2}
NEMOTRON |= {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": GROUPS}
NEMOTRON |= {"time_step_min": 1e-9}
"""Sizes of Nemotron-H. Files do not hold the least time step; llama.cpp has none, and here it is as good as 0."""
GLM = {**SIZES, "num_key_value_heads": HEADS, "intermediate_size": 64, "moe_intermediate_size": OWN}
GLM |= {"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 1}
GLM |= {"q_lora_rank": RANK, "kv_lora_rank": RANK, "qk_nope_head_dim": KEY, "qk_rope_head_dim": TURNED}
GLM |= {"v_head_dim": HEAD, "index_topk": 5, "index_head_dim": 16, "index_n_heads": 16, "rope_parameters": ROPE}
GLM |= {"rms_norm_eps": 1e-6}  # that of the latents' norms, which is fixed there
GLM |= {"indexer_types": ["full", "full", "shared", "full"]}
GLM_KEYS = {"attention.head_count_kv": 1, "attention.key_length": RANK + TURNED, "attention.value_length": RANK}
GLM_KEYS |= {"attention.key_length_mla": KEY + TURNED, "attention.value_length_mla": HEAD}
GLM_KEYS |= {"attention.q_lora_rank": RANK, "attention.kv_lora_rank": RANK, "rope.dimension_count": TURNED}
GLM_KEYS |= {"attention.indexer.head_count": 16, "attention.indexer.key_length": 16, "attention.indexer.top_k": 5}
GLM_KEYS |= {"attention.indexer.types": [True, True, False, True], "leading_dense_block_count": 1}
GLM_KEYS |= {"expert_feed_forward_length": OWN, "expert_shared_count": 1, "expert_weights_norm": True}
GLM_KEYS |= {"expert_weights_scale": 2.5, "attention.layer_norm_rms_epsilon": 1e-6}

Case = tuple[str, str, str, dict[str, Any], dict[str, Any], Callable[[str, Array], Arranged]]
CASES: dict[str, Case] = {
    "qwen3next": ("qwen3next", "Qwen3NextForCausalLM", "Qwen3NextConfig", QWEN, QWEN_KEYS, with_one),
    "qwen35moe": (
        "qwen35moe",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        QWEN,
        QWEN_KEYS | {"rope.dimension_sections": [1, 1, 0, 0]},
        tiled,
    ),
    "minimax-m2": (
        "minimax-m2",
        "MiniMaxM2ForCausalLM",
        "MiniMaxM2Config",
        {**MINIMAX, "rope_parameters": PART_OF_A_HEAD},
        {"expert_feed_forward_length": OWN, "expert_gating_func": 2, "rope.dimension_count": 4}
        | {"attention.layer_norm_rms_epsilon": 1e-6},
        plain,
    ),
    "hunyuan-moe": (
        "hunyuan-moe",
        "HunYuanMoEV1ForCausalLM",
        "HunYuanMoEV1Config",
        {**SIZES, "intermediate_size": OWN, "num_experts": EXPERTS, "moe_topk": 2},
        {"expert_feed_forward_length": OWN, "expert_shared_feed_forward_length": OWN},
        plain,
    ),
    "llama4": (
        "llama4",
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        LLAMA4,
        {"expert_feed_forward_length": OWN, "interleave_moe_layer_step": 2},
        transposed,
    ),
    "glm-dsa": ("glm-dsa", "GlmMoeDsaForCausalLM", "GlmMoeDsaConfig", GLM, GLM_KEYS, absorbed),
    "nemotron_h_moe": (
        "nemotron_h_moe",
        "NemotronHForCausalLM",
        "NemotronHConfig",
        NEMOTRON,
        {"attention.head_count_kv": [0, 0, GROUPS, 0], "feed_forward_length": [0, OWN, 0, OWN]}
        | {"ssm.group_count": GROUPS, "ssm.time_step_rank": 4, "ssm.inner_size": 64, "ssm.state_size": 16}
        | {"ssm.conv_kernel": TAPS, "expert_feed_forward_length": OWN, "expert_shared_feed_forward_length": 48}
        | {"expert_weights_norm": True},
        mamba,
    ),
    "gemma4": (
        "gemma4",
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {**GEMMA, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 40, "num_kv_shared_layers": 2}
        | {"use_double_wide_mlp": True},
        GEMMA_KEYS
        | {"embedding_length_per_layer_input": 4, "attention.shared_kv_layers": 2}
        | {"feed_forward_length": [64, 64, 128, 128]},
        plain,
    ),
    "gemma4 with experts": (
        "gemma4",
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {**GEMMA, "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 2, "num_kv_shared_layers": 0}
        | {"moe_intermediate_size": OWN, "hidden_size_per_layer_input": 0, "num_global_key_value_heads": 1}
        | {"attention_k_eq_v": True},
        GEMMA_KEYS | {"expert_feed_forward_length": OWN, "attention.head_count_kv": [GROUPS, 1] * 2},
        plain,
    ),
}
"""Architecture, class and configuration in transformers with its sizes, metadata, and arrangement of tensors."""


def renamed(name: str, architecture: str) -> str:
    after = "ffn_norm" if architecture not in ("qwen3next", "qwen35moe", "gemma4") else "post_attention_norm"
    name = name.replace("post_attention_layernorm", after)
    for pattern, replacement in NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def random_model(case: Case) -> Any:
    import torch
    import transformers

    _, model, config, sizes, _, _ = case
    torch.manual_seed(0)
    module = getattr(transformers, model)(getattr(transformers, config)(**sizes)).float().eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.copy_(noise / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else tensor + 0.2 * noise)
    return module


def converted(name: str, module: Any, path: Path) -> Path:
    """Write a model of transformers as a file."""
    architecture, *_, metadata_of_case, arrange = CASES[name]
    keys = {"block_count": LAYERS, "embedding_length": D, "feed_forward_length": 64, "attention.head_count": HEADS}
    keys |= {"attention.head_count_kv": GROUPS, "attention.layer_norm_rms_epsilon": 1e-5}
    keys |= {"attention.key_length": HEAD, "attention.value_length": HEAD}
    keys |= {} if name == "gemma4" else {"expert_count": EXPERTS, "expert_used_count": 2}
    metadata = {f"{architecture}.{key}": value for key, value in (keys | metadata_of_case).items()}
    tensors = {}
    for label, tensor in module.state_dict().items():
        if "inv_freq" not in label:
            tensors |= dict(arrange(renamed(label, architecture), tensor.numpy()))
    if architecture == "gemma4":
        tensors["rope_freqs.weight"] = np.array([1.0] * 2 + [1e30] * 6)
    kept = {label: stored(np.ascontiguousarray(array)) for label, array in tensors.items()}
    return write_file(path, {"general.architecture": architecture, **metadata}, kept)


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import torch

    case = CASES[name]
    module = random_model(case)
    with torch.no_grad():
        expected = module(torch.from_numpy(IDS)).logits.numpy()
    parts = mock.patch.object(llama4, "CHUNK", 4) if name == "llama4" else contextlib.nullcontext()
    with parts:
        path = converted(name, module, tmp_path / "model.gguf")
        limit = 2e-5 * np.abs(expected).max()
        actual = run(import_file(path), {"input_ids": IDS})["logits"]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)
        session = moec.compile(path, passes="O2").session()
    steps = [session.run(ids, last=None) for ids in (IDS[:, :6], *np.split(IDS[:, 6:], 8, axis=1))]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), expected, rtol=0, atol=limit)
    tokens = np.argmax(expected[0], axis=-1)
    assert np.argmax(np.concatenate(steps, axis=1)[0], axis=-1).tolist() == tokens.tolist()
