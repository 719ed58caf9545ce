"""Batches of Hugging Face models with states of several kinds: against sessions, and with other neighbours."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import moec

from .test_batch import Alone, finish

VOCABULARY = 96
_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "intermediate_size": 48,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
_EXPERTS = {"num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA = {
    "num_key_value_heads": 2,
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 8,
    "mamba_d_conv": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "DeepseekV2": {**_LATENT, "q_lora_rank": None, "n_group": 1},
    "DeepseekV3": {**_LATENT, "n_group": 2},
    "Qwen3Next": {**_EXPERTS, **_LINEAR},
    "Lfm2Moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "GraniteMoeHybrid": _MAMBA,
    "Bamba": {key: size for key, size in _MAMBA.items() if key != "layer_types"} | {"attn_layer_indices": [1]},
    "NemotronH": {
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
    },
}


def model_of(family: str, folder: pathlib.Path) -> moec.CompiledModel:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_SHARED, **FAMILIES[family])
    transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    return moec.compile(folder, batches=True)


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_compute_what_sessions_do_whatever_runs_beside_them(family, tmp_path):
    model = model_of(family, tmp_path)
    alone, prompts = Alone(model), [np.arange(count) % VOCABULARY for count in (20, 5, 60, 1)]
    expected = [alone.run(number, ids) for number, ids in enumerate(prompts)]
    expected += [alone.run(number, np.array([7 + number])) for number in range(len(prompts))]
    together = texts(model, prompts)
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(expected), rtol=1e-4, atol=1e-6)
    for neighbours in ([], [9, 40, 2], [3]):
        others = [np.arange(count) + 11 for count in neighbours]
        again = texts(model, [prompts[0], *others])
        np.testing.assert_array_equal(again[0], together[0])
        np.testing.assert_array_equal(again[1 + len(others)], together[len(prompts)])


def texts(model: moec.CompiledModel, prompts: list[np.ndarray]) -> list[np.ndarray]:
    """Logits after each prompt, then after one more token of each."""
    batch = model.batch(8, 8 * 256)
    numbers = [batch.add(ids) for ids in prompts]
    results = [finish(batch)]
    for number in numbers:
        batch.extend(number, [7 + number])
    results.append(finish(batch))
    return [result[number] for result in results for number in numbers]
