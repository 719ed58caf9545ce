"""moec's kernels in transformers' models that PyTorch runs eagerly."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import importlib
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest

import moec
from moec.common.errors import InputError, MoecError, UnsupportedError
from moec.frontend.huggingface.experts import is_experts

from ..products import thinned

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason='needs the extra "torch": pip install "moec[torch]"'
)

eager_experts = importlib.import_module("moec.torch.eager_experts")

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64, "eos_token_id": None,
    "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 40, "head_dim": 8},
    "Olmoe": {"num_experts": 4, "num_key_value_heads": 4},
    "DeepseekV3": {
        "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "moe_intermediate_size": 40,
        "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "GraniteMoe": {"num_local_experts": 4},
}  # fmt: skip
PROMPT = torch.tensor([[5, 9, 2], [7, 7, 31]])


def tiny(family: str, dtype: Any = torch.float32) -> Any:
    """Make one layer of four experts with random weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family]})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.set_experts_implementation("eager")
    return model.to(dtype)


def layer_of(model: Any) -> Any:
    return next(module for module in model.modules() if is_experts(module))


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(PROMPT).logits.float().numpy()


def tokens(model: Any) -> list[list[int]]:
    return model.generate(PROMPT, max_new_tokens=6, do_sample=False).tolist()


def close(actual: Any, expected: Any, share: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_what_it_says_in_eager_pytorch(family: str) -> None:
    model = tiny(family)
    expected, said = logits(model), tokens(model)
    moec.torch.experts(model)
    close(logits(model), expected, 1e-5)
    assert tokens(model) == said
    model.set_experts_implementation("eager")
    np.testing.assert_array_equal(logits(model), expected)


@pytest.fixture(scope="module")
def mixtral() -> Any:
    return tiny("Mixtral")


@thinned(("form", "least", "most"), [("int4/32", 1e-3, 0.3), ("int8", 1e-4, 0.05)], 2)
def test_weights_in_fewer_bits_stay_near(mixtral: Any, form: str, least: float, most: float) -> None:
    model = copy.deepcopy(mixtral)
    expected = logits(model)
    moec.torch.experts(model, format=form)
    error = np.abs(logits(model) - expected).max() / np.abs(expected).max()
    assert least < error < most


@thinned("dtype", [torch.bfloat16, torch.float16], 2)
def test_a_model_in_16_bits(dtype: Any) -> None:
    model = tiny("Mixtral", dtype)
    layer = layer_of(model)
    x, ids, weights = torch.randn(5, 32, dtype=dtype), torch.randint(0, 4, (5, 2)), torch.rand(5, 2, dtype=dtype)
    with torch.no_grad():
        expected = copy.deepcopy(layer).float()(x.float(), ids, weights.float())
        moec.torch.experts(model)
        actual = layer(x, ids, weights)
    assert actual.dtype == dtype
    close(actual.float().numpy(), expected.to(dtype).float().numpy(), torch.finfo(dtype).eps)


def test_numbers_of_tokens_and_experts_that_are_none(mixtral: Any) -> None:
    """The id 4 belongs to no expert."""
    model, layer = copy.deepcopy(mixtral), layer_of(mixtral)
    moec.torch.experts(model)
    for T in (0, 1, 7, 130):
        x, ids, weights = torch.randn(T, 32), torch.randint(0, 5, (T, 2)), torch.rand(T, 2)
        with torch.no_grad():
            expected, actual = layer(x, ids, weights), layer_of(model)(x, ids, weights)
        assert actual.shape == (T, 32)
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_changed_parameters_are_noticed(mixtral: Any) -> None:
    model = copy.deepcopy(mixtral)
    moec.torch.experts(model)
    before = logits(model)
    changes = {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    layer = layer_of(model)
    with torch.no_grad():
        layer.down_proj.mul_(1.5)
    in_place = logits(model)
    layer.down_proj = torch.nn.Parameter(layer.down_proj / 3)
    replaced = logits(model)
    model.load_state_dict(changes)
    loaded = logits(model)
    model.set_experts_implementation("eager")
    close(loaded, logits(model), 1e-5)
    for first, other in ((before, in_place), (in_place, replaced), (replaced, loaded)):
        assert np.abs(first - other).max() > 1e-3


def test_two_models_and_two_threads(mixtral: Any) -> None:
    models = [copy.deepcopy(mixtral) for _ in range(2)]
    with torch.no_grad():
        layer_of(models[1]).down_proj.neg_()
    expected = [logits(model) for model in models]
    for model in models:
        moec.torch.experts(model)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(logits, [*models, *models]))
    for actual, other in zip(results, [*expected, *expected], strict=True):
        close(actual, other, 1e-5)


@pytest.mark.nightly
def test_a_compiled_layer_goes_with_its_module(mixtral: Any) -> None:
    model = copy.deepcopy(mixtral)
    moec.torch.experts(model)
    logits(model)
    compiled = weakref.ref(eager_experts._layers[layer_of(model)].model)
    assert compiled() is not None
    del model
    gc.collect()
    assert compiled() is None


def test_layers_have_the_threads_of_pytorch(mixtral: Any) -> None:
    model, before = copy.deepcopy(mixtral), torch.get_num_threads()
    moec.torch.experts(model)
    torch.set_num_threads(1)
    try:
        logits(model)
    finally:
        torch.set_num_threads(before)
    assert eager_experts._layers[layer_of(model)].model.threads == 1


@pytest.mark.nightly
def test_compiling_the_whole_model_leaves_the_choice_as_it_is(mixtral: Any) -> None:
    model = copy.deepcopy(mixtral)
    expected = logits(model)
    moec.torch.experts(model)
    whole = moec.compile(model)
    assert model.config._experts_implementation == "moec"
    close(whole.run({"input_ids": PROMPT.numpy()})["logits"], expected, 1e-5)


def test_gradients_are_refused(mixtral: Any) -> None:
    model = copy.deepcopy(mixtral)
    moec.torch.experts(model)
    with pytest.raises(InputError, match=r"^MixtralExperts: gradients are wanted, and moec computes inference only: "):
        model(PROMPT)
    model.requires_grad_(False)
    model(PROMPT)


def test_parameters_whose_changes_are_not_counted_are_refused(mixtral: Any) -> None:
    with torch.inference_mode():
        model = copy.deepcopy(mixtral)
        moec.torch.experts(model)
        with pytest.raises(UnsupportedError, match=r"^MixtralExperts: its parameters were made under .*inference_mode"):
            model(PROMPT)


def test_transformers_knows_moec_by_name(mixtral: Any, tmp_path: Any) -> None:
    expected, chosen = logits(mixtral), copy.deepcopy(mixtral)
    chosen.set_experts_implementation("moec")
    close(logits(chosen), expected, 1e-5)
    assert layer_of(chosen) in eager_experts._layers and layer_of(mixtral) not in eager_experts._layers
    mixtral.save_pretrained(tmp_path)
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path, experts_implementation="moec").eval()
    close(logits(loaded), expected, 1e-5)
    assert layer_of(loaded) in eager_experts._layers


def test_a_name_that_nobody_offered_is_not_known(mixtral: Any) -> None:
    with pytest.raises(ValueError, match="moec:int4/48"):
        copy.deepcopy(mixtral).set_experts_implementation("moec:int4/48")


@pytest.mark.nightly
@pytest.mark.parametrize("first, second", [("moec", "transformers"), ("transformers.integrations.moe", "moec")])
def test_both_orders_of_imports_in_a_new_process(first: str, second: str) -> None:
    ask = "from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS; print('moec' in ALL_EXPERTS_FUNCTIONS)"
    done = subprocess.run(
        [sys.executable, "-c", f"import {first}; import {second}; {ask}"], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_what_moec_has_not_is_refused_and_the_model_stays_as_it_was(mixtral: Any) -> None:
    model = copy.deepcopy(mixtral)
    layer_of(model).act_fn = torch.nn.Softsign()
    with pytest.raises(UnsupportedError, match=r"^model\.layers\.0\.mlp\.experts: its activation is not one"):
        moec.torch.experts(model)
    assert model.config._experts_implementation == "eager"


def test_a_format_that_does_not_exist_is_refused(mixtral: Any) -> None:
    with pytest.raises(MoecError, match="int7"):
        moec.torch.experts(mixtral, format="int7")
    assert mixtral.config._experts_implementation == "eager"


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^Linear: has no experts with a choice of implementations"):
        moec.torch.experts(torch.nn.Linear(2, 2))
