"""Tiny folders of models with an MTP layer, whose tensors have the names that the families' own files have."""

from __future__ import annotations

import pathlib
from typing import Any

from .models import torch, transformers

LAYERS, WIDTH, VOCABULARY = 2, 32, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "pad_token_id": None, "num_experts_per_tok": 2, "n_routed_experts": 4,
    "num_experts": 4, "moe_num_experts": 4, "moe_k": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 24, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
ONE_LAYER = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "first_k_dense_replace": 0}
BEHIND, APART, LISTS = f"model.layers.{LAYERS}.", "mtp.", "model.mtp_"
FAMILIES = {
    "Glm4Moe": BEHIND, "DeepseekV3": BEHIND, "Qwen3Next": APART, "Qwen3_5MoeText": APART, "Qwen3_5Text": APART,
    "Ernie4_5_Moe": LISTS,
}  # fmt: skip
NAMES = {
    BEHIND: {
        "model.layers.0.": BEHIND, "model.norm.": f"{BEHIND}shared_head.norm.",
        "lm_head.": f"{BEHIND}shared_head.head.", "model.embed_tokens.": f"{BEHIND}embed_tokens.",
    },
    APART: {"model.layers.0.": "mtp.layers.0.", "model.norm.": "mtp.norm."},
    LISTS: {"model.layers.0.": "model.mtp_block.0."},
}  # fmt: skip
"""Starts of names in a model of one layer and in the files."""
PARTS = {
    BEHIND: [f"{BEHIND}{part}.weight" for part in ("enorm", "hnorm", "eh_proj")],
    APART: ["mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.fc.weight"],
    LISTS: [f"model.mtp_{part}.0.weight" for part in ("emb_norm", "hidden_norm", "linear_proj")],
}


def tiny(family: str, **changes: Any) -> Any:
    """Make a module of the family with random weights."""
    config = getattr(transformers, f"{family}Config")
    defaults = config().to_dict()
    sizes = SIZES | (LATENT if "kv_lora_rank" in defaults else {}) | changes
    kind = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")
    module = kind(config(**{name: size for name, size in sizes.items() if name in defaults})).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    return module


def write_folder(folder: pathlib.Path, family: str, certain: bool = False, **changes: Any) -> tuple[Any, Any, Any]:
    """Write a folder with an MTP layer. Returns its module, a module of one layer with the layer's weights, and the
    tensors by name. ``certain``: no layer adds anything to the residual stream, and the MTP layer projects the
    embedding alone, so that it predicts what the model will. ``changes``: tensors by name, None for those left out."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model, layer = tiny(family), tiny(family, **ONE_LAYER)
    style = FAMILIES[family]
    kept = [part for part in ("model.embed_tokens.", "lm_head.", "model.norm.") if certain or part not in NAMES[style]]
    layer.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name.startswith(tuple(kept))}, strict=False
    )
    for part, module in (("model", model), ("layer", layer)):
        if certain:
            make_certain(module)
        module.save_pretrained(folder / part)
    tensors, of_layer = (load_file(folder / part / "model.safetensors") for part in ("model", "layer"))
    for name, value in of_layer.items():
        start = next((start for start in NAMES[style] if name.startswith(start)), None)
        if start is not None:
            tensors[NAMES[style][start] + name.removeprefix(start)] = value
    *norms, projection = PARTS[style]
    norm = layer.model.norm.weight
    tensors |= {name: norm.detach().clone() if certain else torch.rand(WIDTH) + 0.5 for name in norms}
    halves = torch.cat([torch.eye(WIDTH), torch.zeros(WIDTH, WIDTH)], dim=1)
    tensors[projection] = halves if certain else torch.randn(WIDTH, 2 * WIDTH) / WIDTH**0.5
    written = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    return model, layer, tensors


def make_certain(module: Any) -> None:
    is_shifted = "Qwen3" in type(module).__name__  # its norms multiply by 1 more than their weight
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(0.0 if is_shifted else 1.0)
