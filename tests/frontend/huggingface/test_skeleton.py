"""Modules built from a configuration alone, and their classes."""

from __future__ import annotations

from typing import Any

import pytest

from moec.frontend.huggingface.binding import Binding
from moec.frontend.huggingface.folder import read_config, read_tensors
from moec.frontend.huggingface.sizes import Holdings
from moec.frontend.huggingface.skeleton import build
from tests.frontend.huggingface.models import saved, torch, transformers

TEXT = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8, "intermediate_size_mlp": 24, "pad_token_id": 0,
}  # fmt: skip
SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "out_hidden_size": 16,
}


def seeing(config: str, model: str) -> Any:
    """Make a model that also takes images."""
    kind = getattr(transformers, f"{config}Config")
    fields = {part: kind.sub_configs[f"{part}_config"]().to_dict() for part in ("text", "vision")}
    text, vision = (
        {name: value for name, value in sizes.items() if name in fields[part]}
        for part, sizes in (("text", TEXT), ("vision", SIGHT))
    )
    return getattr(transformers, model)(kind(text_config=text, vision_config=vision)).eval()


@pytest.mark.parametrize(
    ("config", "whole", "config_class"),
    [
        ("Llama4", "Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
        ("Qwen3_5Moe", "Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
        ("Qwen3VLMoe", "Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
    ],
)
def test_of_a_model_that_sees_the_language_model_is_made(config, whole, config_class, tmp_path):
    """Transformers has the language model as a class; its tensors are found in the files of the whole."""
    module = seeing(config, whole)
    folder = saved(module, tmp_path)
    skeleton = build(read_config(folder), Holdings.of(read_tensors(folder)), str(folder))
    assert type(skeleton).__name__ == config_class
    binding = Binding.of(skeleton, read_tensors(folder), read_config(folder), str(folder))
    assert dict(skeleton.named_parameters()).keys() <= binding.names
    (bound,) = (weight for own, weight in binding.weights.items() if own.endswith("embed_tokens.weight"))
    torch.testing.assert_close(torch.from_numpy(bound.data.tensor().numpy()), module.get_input_embeddings().weight)
