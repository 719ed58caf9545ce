"""Replacements for parts of models during export compute the same as the originals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moec
from moec.common.errors import UnsupportedError
from moec.frontend.pytorch import batched_experts, dynamic_sizes, recurrences
from moec.frontend.pytorch.exportable import exportable
from moec.frontend.pytorch.text_cache import cache_inputs, with_cache
from moec.frontend.pytorch.text_inputs import TextInputs, text_inputs
from tests.frontend.huggingface.models import torch, transformers

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_topk": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Dbrx": {
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "LongcatFlash": {
        "num_layers": 1,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 8,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "ffn_hidden_size": 24,
    },
    "JetMoe": {"kv_channels": 8},
    "MiniMax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_d_state": 8,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_expand": 2,
        "mamba_n_groups": 2,
        "mamba_chunk_size": 16,
        "shared_intermediate_size": 24,
    },
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "MiniMaxM3VL": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "dense_intermediate_size": 24,
        "shared_intermediate_size": 24,
        "rotary_dim": 4,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 8,
        "index_topk_blocks": 2,
    },
    "Qwen4Exp": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "num_experts": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1],
        "ple_embed_dim": 16,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 20,
        "split_ngram_parts": 1,
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "DeepseekV4": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 8,
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "mlp_layer_types": ["moe", "moe"],
        "o_groups": 2,
        "o_lora_rank": 8,
        "sliding_window": 8,
        "index_n_heads": 8,
        "index_head_dim": 16,
        "index_topk": 4,
    },
}


@pytest.fixture(params=FAMILIES, scope="module")
def module(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{request.param}TextConfig", None) or getattr(transformers, f"{request.param}Config")
    sizes = {**{name: value for name, value in SIZES.items() if hasattr(kind(), name)}, **FAMILIES[request.param]}
    built = getattr(transformers, f"{request.param}ForCausalLM")(kind(**sizes)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return built


@pytest.mark.parametrize("shape", [(1, 1), (2, 37)])
def test_models_compute_the_same(module: Any, shape: tuple[int, int]) -> None:
    ids = torch.randint(3, 32, shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(input_ids=ids, use_cache=False).logits
        with exportable(module):
            actual = module(input_ids=ids, use_cache=False).logits
        again = module(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
    assert torch.equal(again, expected)
    assert not any("forward" in vars(part) for part in module.modules())


def test_experts_of_step_are_those_that_tokens_chose() -> None:
    """Experts clamp their gates, too, and all experts of a token may be the same."""
    from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

    config = transformers.Step3p7Config().get_text_config()
    config.update({"num_local_experts": 4, "hidden_size": 16, "moe_intermediate_size": 8})
    experts: Any = Step3p7Experts(config, swiglu_limit=0.5)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
        for tokens in (0, 1, 9):
            x, weights = torch.randn(tokens, 16), torch.rand(tokens, 2)
            ids = torch.randint(0, 4, (tokens, 2))
            torch.testing.assert_close(batched_experts.step(experts, x, ids, weights), experts(x, ids, weights))


def test_the_smaller_of_two_sizes_is_no_decision() -> None:
    class Best(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.topk(dynamic_sizes.smallest(4, x.shape[1]), dim=1).values

    model = moec.compile(Best().eval(), (torch.ones(1, 3),), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},))
    assert not any("<=" in guard and "1 <=" not in guard for guard in model.guards)
    for length in (3, 9):
        x = np.random.default_rng(0).permutation(length).astype(np.float32)[None]
        np.testing.assert_array_equal(model(x)["output"], -np.sort(-x)[:, :4])


def test_smallest_and_largest_of_all_else_are_those_of_python() -> None:
    assert (dynamic_sizes.smallest(3, 2), dynamic_sizes.largest([1, 2], key=lambda n: -n)) == (2, 1)


def delta_rule(query: Any, key: Any, value: Any, g: Any, beta: Any) -> Any:
    """Compute the recurrence as its authors define it, step by step."""
    query, key = (rows / (rows.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() for rows in (query, key))
    state, result = torch.zeros(*key.shape[:1], *key.shape[2:], value.shape[-1]), []
    for t in range(key.shape[1]):
        decay = g[:, t].exp()
        state = state * (decay[..., None] if g.dim() == 4 else decay[..., None, None])
        recalled = (state * key[:, t, ..., None]).sum(-2)
        state = state + key[:, t, ..., None] * ((value[:, t] - recalled) * beta[:, t, :, None])[..., None, :]
        result.append((state * query[:, t, ..., None]).sum(-2) * key.shape[-1] ** -0.5)
    return torch.stack(result, 1)


@pytest.mark.parametrize("length", [1, 64, 65, 200])
@pytest.mark.parametrize("channels", [False, True], ids=["a decay for each head", "one for each channel"])
def test_gated_delta_rule(length: int, channels: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, length, 3, 8, generator=generator) for _ in range(3))
    beta = torch.rand(2, length, 3, generator=generator)
    g = -torch.rand(2, length, 3, *([8] if channels else []), generator=generator)
    actual, state = recurrences.gated_delta_rule(query, key, value, g, beta, use_qk_l2norm_in_kernel=True)
    torch.testing.assert_close(actual, delta_rule(query, key, value, g, beta), rtol=0, atol=1e-5)
    assert state is None


def test_keys_that_are_all_alike_lose_nothing() -> None:
    """The triangular systems are as ill-conditioned as possible: powers of these matrices would overflow."""
    query, value = torch.randn(2, 1, 130, 1, 8, generator=torch.Generator().manual_seed(0))
    key, beta, g = torch.ones(1, 130, 1, 8), torch.ones(1, 130, 1), torch.zeros(1, 130, 1)
    actual, _ = recurrences.gated_delta_rule(query, key, value, g, beta, use_qk_l2norm_in_kernel=True)
    torch.testing.assert_close(actual, delta_rule(query, key, value, g, beta), rtol=0, atol=1e-4)


@pytest.mark.parametrize("first", [1, 64, 65])
def test_sequences_in_parts(first: int) -> None:
    """The second part begins with the state after the first."""
    generator = torch.Generator().manual_seed(first)
    query, key, value = (torch.randn(2, 130, 3, 8, generator=generator) for _ in range(3))
    g = -torch.rand(2, 130, 3, generator=generator)
    rates = torch.ones(3)

    def delta(part: slice, state: Any) -> Any:
        rows = [tensor[:, part] for tensor in (query, key, value, g, g.exp())]
        return recurrences.gated_delta_rule(
            *rows, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
        )

    def scan(part: slice, state: Any) -> Any:
        rows = [tensor[:, part] for tensor in (value, g.exp())]
        others = [tensor[:, part] for tensor in (key, query)]
        return recurrences.chunk_scan(*rows, -rates, *others, 16, initial_states=state, return_final_states=True)

    for run in (delta, scan):
        whole, end = run(slice(None), None)
        actual, state = run(slice(first), None)
        rest, last = run(slice(first, None), state)
        torch.testing.assert_close(torch.cat([actual, rest], 1), whole, rtol=0, atol=1e-4)
        torch.testing.assert_close(last, end, rtol=0, atol=1e-4)


def test_parts_of_a_text_compute_what_the_whole_does(module: Any) -> None:
    """The tensors of the module's cache are inputs and outputs."""
    parts = (21, 1, 15)
    ids = torch.randint(3, 32, (2, sum(parts)), generator=torch.Generator().manual_seed(1))
    built = text_inputs(module)
    assert built is not None
    with torch.no_grad(), exportable(module):
        expected = module(input_ids=ids, use_cache=False).logits
        if type(module).__name__.startswith(("MiniMaxM3", "Qwen4", "DeepseekV4")):
            with pytest.raises(UnsupportedError, match="to blocks of keys is exported without a cache"):
                cache_inputs(module, built)
            return
        cached = cache_inputs(module, built)
        past = {name: empty(cached.inputs, name) for name in cached.inputs.example if name != "input_ids"}
        actual = []
        with with_cache(module, cached.form):
            for part in ids.split(parts, dim=1):
                results = module(input_ids=part, **past)
                actual.append(results.pop("logits"))
                past = {name.replace("present", "past"): value for name, value in results.items()}
    torch.testing.assert_close(torch.cat(actual, 1), expected, rtol=0, atol=2e-5)


def empty(inputs: TextInputs, name: str) -> Any:
    """Make a state before the first token."""
    example, growing = inputs.example[name], inputs.dynamic_shapes[name].keys() - {0}
    return torch.zeros([0 if axis in growing else size for axis, size in enumerate(example.shape)])
