"""Tiny models whose layers differ in kind: recurrent ones beside attention, windows beside all tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .gguf_files import stored

if TYPE_CHECKING:
    from .tiny_models import Tiny


def qwen3next(tiny: Tiny, moe: bool = True, older: bool = False) -> None:
    """Build Qwen3-Next or Qwen3.5: a gated delta net, and attention with a gate for each head. ``older``: a file whose
    delta net has one input matrix."""
    sizes = tiny.sizes
    keys, values, size, taps = 2, 4, 8, 4
    for layer in range(sizes.LAYERS):
        tiny.norms(layer, "attn_norm", "post_attention_norm")
        name = f"blk.{layer}"
        if layer:
            tiny.attention(layer, norm="head")
            tiny.matrix(f"{name}.attn_q.weight", sizes.HEADS * 2 * sizes.HEAD, sizes.D)
        else:
            if older:
                tiny.matrix(f"{name}.ssm_in.weight", 2 * (keys + values) * size, sizes.D)
            else:
                tiny.matrix(f"{name}.attn_qkv.weight", (2 * keys + values) * size, sizes.D)
                tiny.matrix(f"{name}.attn_gate.weight", values * size, sizes.D)
            tiny.vector(f"{name}.ssm_conv1d.weight", (2 * keys + values) * size, taps, middle=0.3)
            tiny.vector(f"{name}.ssm_dt.bias", values)
            tiny.vector(f"{name}.ssm_a", values, middle=-1.0)
            if tiny.architecture == "qwen3next":
                tiny.matrix(f"{name}.ssm_ba.weight", 2 * values, sizes.D)
            else:
                tiny.matrix(f"{name}.ssm_beta.weight", values, sizes.D)
                tiny.matrix(f"{name}.ssm_alpha.weight", values, sizes.D)
            tiny.norm(f"{name}.ssm_norm.weight", size)
            tiny.matrix(f"{name}.ssm_out.weight", sizes.D, values * size)
        if moe:
            tiny.experts(layer)
            tiny.mlp(layer, sizes.OWN, "_shexp")
            tiny.vector(f"{name}.ffn_gate_inp_shexp.weight", sizes.D)
        else:
            tiny.mlp(layer)
    tiny.given |= {"ssm.group_count": keys, "ssm.time_step_rank": values, "ssm.state_size": size}
    tiny.given |= {"ssm.inner_size": values * size, "ssm.conv_kernel": taps, "full_attention_interval": 2}
    tiny.given |= {
        "rope.dimension_count": sizes.HEAD // 2,
        "attention.key_length": sizes.HEAD,
        "attention.value_length": sizes.HEAD,
    }
    if moe:
        tiny.given |= sizes.MOE | {
            "expert_feed_forward_length": sizes.OWN,
            "expert_shared_feed_forward_length": sizes.OWN,
        }
    if tiny.architecture != "qwen3next":
        tiny.given |= {"rope.dimension_sections": [1, 1, 0, 0]}


def llama4(tiny: Tiny, layers: int = 4) -> None:
    """Build Llama 4: a dense layer and one with experts in turn, of which the fourth has no rotary embedding."""
    sizes = tiny.sizes
    for layer in range(layers):
        tiny.norms(layer, "attn_norm", "ffn_norm")
        tiny.attention(layer)
        if layer % 2:
            tiny.experts(layer)
            tiny.mlp(layer, sizes.OWN, "_shexp")
        else:
            tiny.mlp(layer)
    tiny.given |= sizes.MOE | {
        "block_count": layers,
        "expert_feed_forward_length": sizes.OWN,
        "interleave_moe_layer_step": 2,
    }
    tiny.given |= {"rope.dimension_count": sizes.HEAD, "rope.freq_base": 500_000.0}


def nemotron_h(tiny: Tiny, moe: bool = True, latent: int = 0) -> None:
    """Build Nemotron-H: Mamba 2, an MLP, attention, and an MLP."""
    sizes = tiny.sizes
    layers, heads, groups, inner, state, taps = 4, 4, 2, 64, 16, 4
    for layer in range(layers):
        name = f"blk.{layer}"
        tiny.norms(layer, "attn_norm")
        if layer == 0:
            tiny.matrix(f"{name}.ssm_in.weight", 2 * inner + 2 * groups * state + heads, sizes.D)
            tiny.vector(f"{name}.ssm_conv1d.weight", inner + 2 * groups * state, taps, middle=0.3)
            tiny.vector(f"{name}.ssm_conv1d.bias", inner + 2 * groups * state)
            tiny.vector(f"{name}.ssm_dt.bias", heads)
            tiny.vector(f"{name}.ssm_a", heads, 1, middle=-1.0)
            tiny.vector(f"{name}.ssm_d", heads, 1)
            tiny.vector(f"{name}.ssm_norm.weight", groups, inner // groups, middle=1.0)
            tiny.matrix(f"{name}.ssm_out.weight", sizes.D, inner)
        elif layer == 2:
            tiny.attention(layer)
        elif moe:
            tiny.experts(layer, correction=True)
            tiny.mlp(layer, sizes.INNER, "_shexp")
            del tiny.tensors[f"{name}.ffn_gate_exps.weight"], tiny.tensors[f"{name}.ffn_gate_shexp.weight"]
            if latent:
                tiny.matrix(f"{name}.ffn_latent_down.weight", latent, sizes.D)
                tiny.matrix(f"{name}.ffn_latent_up.weight", sizes.D, latent)
                tiny.matrix(f"{name}.ffn_up_exps.weight", sizes.EXPERTS, sizes.OWN, latent)
                tiny.matrix(f"{name}.ffn_down_exps.weight", sizes.EXPERTS, latent, sizes.OWN)
        else:
            tiny.mlp(layer)
            del tiny.tensors[f"{name}.ffn_gate.weight"]
    tiny.given |= {"block_count": layers, "attention.head_count_kv": [0, 0, sizes.GROUPS, 0]}
    tiny.given |= {"feed_forward_length": [0, sizes.OWN if moe else sizes.INNER] * 2, "ssm.conv_kernel": taps}
    tiny.given |= {"ssm.group_count": groups, "ssm.time_step_rank": heads, "ssm.inner_size": inner}
    tiny.given |= {"ssm.state_size": state, "attention.key_length": sizes.HEAD, "attention.value_length": sizes.HEAD}
    tiny.given |= {"rope.dimension_count": sizes.HEAD, "attention.layer_norm_epsilon": 1e-5}
    if moe:
        tiny.given |= sizes.MOE | {
            "expert_feed_forward_length": sizes.OWN,
            "expert_shared_feed_forward_length": sizes.INNER,
        }
        tiny.given |= {"expert_weights_norm": True, "expert_weights_scale": 1.5, "expert_shared_count": 1}
        tiny.given |= {"expert_group_count": 1, "expert_group_used_count": 1}
    if latent:
        tiny.given |= {"moe_latent_size": latent}


def gemma4(tiny: Tiny, moe: bool = False) -> None:
    """Build Gemma 4: either the last layers share keys and values, and every layer has an embedding; or there are
    experts, and keys are values where all tokens are seen."""
    sizes = tiny.sizes
    layers, near, own = 4, sizes.HEAD // 2, 4
    for layer in range(layers):
        name, size, groups = f"blk.{layer}", sizes.HEAD if layer % 2 else near, 1 if layer % 2 and moe else sizes.GROUPS
        tiny.norms(layer, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        tiny.matrix(f"{name}.attn_q.weight", sizes.HEADS * size, sizes.D)
        tiny.norm(f"{name}.attn_q_norm.weight", size)
        tiny.matrix(f"{name}.attn_output.weight", sizes.D, sizes.HEADS * size)
        if moe or layer < 2:
            tiny.matrix(f"{name}.attn_k.weight", groups * size, sizes.D)
            tiny.norm(f"{name}.attn_k_norm.weight", size)
            if not moe or layer % 2 == 0:
                tiny.matrix(f"{name}.attn_v.weight", groups * size, sizes.D)
        tiny.vector(f"{name}.layer_output_scale.weight", 1, middle=0.8)
        tiny.mlp(layer, sizes.INNER if moe or layer < 2 else 2 * sizes.INNER)
        if moe:
            tiny.experts(layer)
            del tiny.tensors[f"{name}.ffn_gate_exps.weight"], tiny.tensors[f"{name}.ffn_up_exps.weight"]
            tiny.matrix(f"{name}.ffn_gate_up_exps.weight", sizes.EXPERTS, 2 * sizes.OWN, sizes.D)
            tiny.vector(f"{name}.ffn_gate_inp.scale", sizes.D, middle=3.0)
            tiny.vector(f"{name}.ffn_down_exps.scale", sizes.EXPERTS, middle=1.0)
            tiny.norms(layer, "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        else:
            tiny.matrix(f"{name}.inp_gate.weight", own, sizes.D)
            tiny.matrix(f"{name}.proj.weight", sizes.D, own)
            tiny.norms(layer, "post_norm")
    del tiny.tensors["output.weight"]
    tiny.tensors["rope_freqs.weight"] = stored(np.array([1.0, 1e30, 1e30, 1e30]))
    tiny.given |= {"block_count": layers, "attention.sliding_window": 5, "final_logit_softcapping": 3.0}
    tiny.given |= {"attention.sliding_window_pattern": [True, False] * 2, "rope.freq_base": 1e6}
    tiny.given |= {f"attention.{part}_length": sizes.HEAD for part in ("key", "value")}
    tiny.given |= {f"attention.{part}_length_swa": near for part in ("key", "value")}
    tiny.given |= {"rope.dimension_count": sizes.HEAD, "rope.dimension_count_swa": near, "rope.freq_base_swa": 10_000.0}
    if moe:
        tiny.given |= sizes.MOE | {
            "expert_feed_forward_length": sizes.OWN,
            "attention.head_count_kv": [sizes.GROUPS, 1] * 2,
        }
        tiny.given |= {"embedding_length_per_layer_input": 0, "attention.shared_kv_layers": 0}
    else:
        tiny.matrix("per_layer_token_embd.weight", sizes.VOCABULARY, layers * own)
        tiny.matrix("per_layer_model_proj.weight", layers * own, sizes.D)
        tiny.norm("per_layer_proj_norm.weight", own)
        tiny.given |= {"embedding_length_per_layer_input": own, "attention.shared_kv_layers": 2}
        tiny.given |= {"feed_forward_length": [sizes.INNER] * 2 + [2 * sizes.INNER] * 2}


def glm_dsa(tiny: Tiny, base: Callable[[Tiny], None], top_k: int) -> None:
    """Make GLM-5 of DeepSeek-V2, the ``base``: an indexer in the first layer, whose selection the second shares; no
    YaRN. It has so many heads that no key scores 0, because llama.cpp orders equal scores otherwise; its Hadamard
    matrix has at least 64 rows."""
    base(tiny)
    heads, size = 16, 64
    tiny.matrix("blk.0.indexer.attn_q_b.weight", heads * size, tiny.sizes.D)
    tiny.matrix("blk.0.indexer.attn_k.weight", size, tiny.sizes.D)
    tiny.norm("blk.0.indexer.k_norm.weight", size)
    tiny.vector("blk.0.indexer.k_norm.bias", size)
    tiny.matrix("blk.0.indexer.proj.weight", heads, tiny.sizes.D)
    tiny.given = {key: value for key, value in tiny.given.items() if not key.startswith("rope.scaling")}
    keys = {"head_count": heads, "key_length": size, "top_k": top_k, "types": [True, False]}
    tiny.given |= {f"attention.indexer.{key}": value for key, value in keys.items()}
