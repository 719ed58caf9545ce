"""Tiny random models of the families of MoE language models that the installed transformers has."""

from __future__ import annotations

import functools
from typing import Any

EXPERTS, CHOSEN = 8, 2
EXPERT_CLASSES = ("DogeCDMoE", "JetMoeMoE")
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "model_max_length": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "n_routed_experts": EXPERTS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "num_experts_per_token": CHOSEN,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_expert_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 16,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 16,
    "unpadded_vocab_size": 96,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 16,
    "d_rel": 8,
    "rel_extent": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_dt_rank": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
}
"""Values of fields, for any configuration that has them."""
SIZES_OF_SIGHT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 4,
    "num_heads": 4,
    "out_hidden_size": 32,
}
"""Values of fields of the vision part."""
OWN_SIZES: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": EXPERTS, "moe_top_k": CHOSEN},
    },
    "beam": {"mlp_layer_types": ["dense", "sparse"]},
    "doge": {"is_moe": True, "num_experts": 16, "sliding_window": None},
    "gemma4_text": {
        "enable_moe_block": True,
        "top_k_experts": CHOSEN,
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_moe": {"moe_topk": CHOSEN},
    "ernie4_5_moe": {"moe_k": CHOSEN, "moe_layer_start_index": 1},
    "aria_text": {"moe_topk": CHOSEN},
    "longcat_flash": {"num_layers": 1, "moe_topk": CHOSEN, "zero_expert_num": 2, "expert_ffn_hidden_size": 24},
    "llama4_text": {"intermediate_size_mlp": 48, "attention_chunk_size": 16, "num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "nemotron_h": {"hybrid_override_pattern": "ME*E", "num_hidden_layers": 4},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "zaya": {"num_experts_per_tok": 1},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"], "num_mtp_layers": 0},
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        "mlp_layer_types": ["hash_moe", "moe"],
        "o_groups": 2,
        "o_lora_rank": 8,
    },
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
            "mrope_section": [1, 1, 2],
        }
    },
    "mistral4": {"head_dim": 16},
    "step3p5": {"moe_layers_enum": "1", "swiglu_limits": [None, 7.0]},
    "flint": {"layer_types": ["full_attention", "sliding_attention"], "mlp_only_layers": [0]},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"]},
    "hy_v4": {"indexer_types": ["full", "shared"]},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"], "mlp_layer_types": ["dense", "sparse"]},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"], "n_layers_per_attn_res_block": 1},
    "inkling2_loop_text": {
        "num_hidden_layers": 3,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid"],
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "loop_num_passes": 2,
        "loop_gate_rank": 8,
    },
    "kimi_linear": {
        "layer_types": ["linear_attention", "full_attention"],
        "q_lora_rank": None,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "kolibri1": {"layer_types": ["sliding_attention", "full_attention"]},
    "lara_mini": {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "sliding_attention", "full_attention"],
    },
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "dense_intermediate_size": 48,
        "rotary_dim": 4,
        "index_n_heads": 2,
        "index_block_size": 16,
        "index_topk_blocks": 2,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
}


def tiny_config(kind: type) -> Any:
    """Make a small configuration of this class, with more than one expert."""
    parts: dict[str, type] = getattr(kind, "sub_configs", {})
    if "vision_config" in parts:
        seen = {name: value for name, value in SIZES_OF_SIGHT.items() if name in parts["vision_config"]().to_dict()}
        deaf = {"audio_config": None} if "audio_config" in parts else {}
        return kind(text_config=tiny_config(parts["text_config"]).to_dict(), vision_config=seen, **deaf)
    defaults = kind().to_dict()
    chosen = {name: value for name, value in SIZES.items() if name in defaults}
    if "kv_lora_rank" in defaults:  # latent attention has as many heads of keys as of queries
        chosen["num_key_value_heads"] = SIZES["num_attention_heads"]
    return kind(**{**chosen, **OWN_SIZES.get(kind.model_type, {})})  # type: ignore[attr-defined]


@functools.cache
def families() -> dict[str, tuple[type, type]]:
    """Map types of models to their configurations and models: language models, some with vision, whose configuration
    mentions experts."""
    from transformers.models.auto import modeling_auto

    classes: dict[str, tuple[type, type]] = {}
    for kinds in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        for kind in kinds:
            parts = getattr(kind, "sub_configs", {})
            if not {"text_config", "vision_config"}.isdisjoint(parts) and (
                parts.keys() - {"audio_config"} != {"text_config", "vision_config"}
                or getattr(parts["vision_config"], "sub_configs", True)
            ):
                continue  # it has other parts, or a vision part with parts of its own
            try:
                usual = kind()
                names = usual.get_text_config().to_dict()
            except Exception:  # some classes need arguments
                continue
            if getattr(usual, "audio_config", None) is not None:
                continue  # it requires an audio part
            if kind.model_type == "dbrx" or any("expert" in name for name in names):
                classes[kind.model_type] = (kind, kinds[kind])
    return dict(sorted(classes.items()))


def random_model(family: str) -> Any:
    """Make a module whose routers are decided: weights as large as their sums need, and correction biases."""
    import torch

    kind, model = families()[family]
    torch.manual_seed(0)
    module = model(tiny_config(kind)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        for name, buffer in module.named_buffers():
            if "bias" in name and buffer.dim() == 1 and buffer.is_floating_point():
                buffer.uniform_(-0.1, 0.1)
            elif name.endswith("tid2eid"):  # the experts of each token
                buffer.copy_(torch.rand(len(buffer), EXPERTS).argsort(1)[:, : buffer.shape[1]])
    return module


def speaking_part(module: Any) -> Any:
    """Find the language model in a module, where it is a part of its own."""
    part = getattr(module, "language_model", None)
    return part if hasattr(part, "lm_head") else module


def expert_layers(module: Any) -> int:
    """Count the parts that hold experts: modules of that name in most families, of their own classes in others. A part
    that runs several times counts as often."""
    import torch

    calls: dict[Any, int] = {}
    for name, part in module.named_modules():
        if name.endswith(".experts") or type(part).__name__ in EXPERT_CLASSES:
            calls[part] = 0
            part.register_forward_pre_hook(lambda part, _: calls.update({part: calls[part] + 1}))
    with torch.no_grad():
        speaking_part(module)(input_ids=torch.ones((1, 2), dtype=torch.int64), use_cache=False)
    return sum(max(1, count) for count in calls.values())
