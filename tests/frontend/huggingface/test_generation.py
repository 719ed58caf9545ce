"""Text from folders of Hugging Face models: the tokens that transformers' greedy search takes."""

from __future__ import annotations

import json

import pytest

import moec
from tests.frontend.huggingface.models import saved, torch, transformers
from tests.runtime.bigrams import tokenizer_json

HYBRID = {
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_offset": 0,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "MiniMax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "Lfm2Moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
}
SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GraniteMoe", *HYBRID])
@pytest.mark.parametrize("cache", [True, False])
def test_greedy_tokens_are_those_of_transformers(family, cache, tmp_path):
    torch.manual_seed(int(family == "Lfm2Moe"))  # its text ends at once with 0
    config = getattr(transformers, f"{family}Config")(**SIZES, **HYBRID.get(family, {}))
    module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    tokenizer_json(saved(module, tmp_path) / "tokenizer.json")
    prompt = "Grüße aus der Welt"
    ids = torch.tensor([ids_of(tmp_path, prompt)])
    with torch.no_grad():
        expected = module.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=257)[
            0, ids.shape[1] :
        ].tolist()
    end = expected[5]  # a token that ends the text here and is not part of it
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    model = moec.compile(tmp_path, cache=cache)
    assert bool(model.states) == cache
    (actual,) = moec.generate(model, prompt, max_new_tokens=20)
    assert (actual.ids, actual.ended) == (expected[: expected.index(end)], "end")


def ids_of(folder, prompt: str) -> list[int]:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids
