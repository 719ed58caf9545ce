"""Text models with keys and values as inputs and outputs: tokens one by one give the logits of all at once."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import moec
from moec.cli.main import app
from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.onnx import conditions
from moec.frontend.pytorch.importer import import_module
from moec.frontend.pytorch.text_cache import cache_inputs
from moec.frontend.pytorch.text_inputs import text_inputs

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason='needs the extra "torch": pip install "moec[torch]"'
)

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4, "max_position_embeddings": 64,
    "head_dim": 8, "sliding_window": 8, "pad_token_id": 0,
}  # fmt: skip

CHAR_LM = pathlib.Path(__file__).parents[3] / "examples" / "char_lm" / "model.onnx"


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def decoded(model: moec.CompiledModel, ids: Any, first: int) -> Any:
    """Compute logits of ``first`` tokens at once and of the others one by one."""
    session = model.session(batch=len(ids))
    return np.concatenate(
        [session.run(part, last=None) for part in np.split(ids, range(first, ids.shape[1]), axis=1)], axis=1
    )


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_tokens_one_by_one(family: str) -> None:
    """Windows have 8 tokens, fewer than the text."""
    module = tiny(family)
    model = moec.compile(module, cache=True, threads=1)
    assert [str(spec) for spec in model.inputs[:2]] == [
        "input_ids int64[batch,length]",
        "past_key_0 float32[batch,2,past,8]",
    ]
    ids = np.random.default_rng(0).integers(1, 64, (3, 11))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(decoded(model, ids, 6), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.nightly
def test_all_states_have_one_batch_and_one_past() -> None:
    """The module itself never compares some of these sizes."""
    config = transformers.Qwen3NextConfig(
        **SIZES,
        num_experts=4,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    imported = import_module(transformers.Qwen3NextForCausalLM(config).eval(), cache=True)
    assert {value.name: [str(size) for size in value.shape] for value in imported.graph.inputs} == {
        "input_ids": ["batch", "length"],
        "past_conv_0": ["batch", "48", "4"],
        "past_state_0": ["batch", "2", "8", "8"],
        "past_key_1": ["batch", "2", "past", "8"],
        "past_value_1": ["batch", "2", "past", "8"],
    }
    assert conditions.read(imported, "").guards == ("1 <= length",)


def test_a_module_that_remembers_frequencies_of_a_run_is_as_before() -> None:
    """The look at its cache, with fake tensors, leaves nothing behind."""
    rope = {"rope_type": "longrope", "short_factor": [1.5] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    rope |= {"original_max_position_embeddings": 8}
    sizes = {**SIZES, "num_hidden_layers": 1, "num_experts_per_tok": None, "num_local_experts": None}
    config = transformers.Phi3Config(**sizes, rope_parameters=rope, bos_token_id=1, eos_token_id=2)
    module = transformers.Phi3ForCausalLM(config).eval()
    before = {name: dict(vars(part)) for name, part in module.named_modules()}
    inputs = text_inputs(module)
    assert inputs is not None and "past_key_0" in cache_inputs(module, inputs).inputs.example
    assert {name: dict(vars(part)) for name, part in module.named_modules()} == before
    with torch.no_grad():
        module(torch.ones((1, 1), dtype=torch.int64))
    assert {name: dict(vars(part)) for name, part in module.named_modules()} != before


@pytest.mark.nightly
def test_a_folder(tmp_path: Any) -> None:
    module = tiny("Mixtral")
    module.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(1, 64, (3, 11))
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).logits.numpy()
    done = CliRunner().invoke(app, ["compile", str(tmp_path), "-o", str(tmp_path / "a.moec"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    actual = decoded(moec.load(tmp_path / "a.moec"), ids, 6)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_keeps_no_keys_and_values_is_refused() -> None:
    with pytest.raises(
        MoecError, match=r"model\.onnx: has the inputs that it was exported with; a cache is for text models"
    ):
        moec.compile(CHAR_LM, cache=True)
    with pytest.raises(MoecError, match=r"^Linear: compiling a PyTorch module needs example_inputs"):
        moec.compile(torch.nn.Linear(2, 2).eval(), cache=True)
    with pytest.raises(MoecError, match=r"^cache=True makes the inputs of a text model of transformers; leave"):
        moec.compile(torch.nn.Linear(2, 2).eval(), (torch.ones(2),), cache=True)
    with pytest.raises(MoecError, match=r"^cache is 1 of type int; expected True, False or None$"):
        moec.compile(torch.nn.Linear(2, 2).eval(), cache=1)  # type: ignore[arg-type]


def test_a_module_whose_own_code_fails_with_a_cache_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("Mixtral")

    def fails(self: Any, input_ids: Any, past_key_values: Any = None, use_cache: Any = None) -> None:
        raise ValueError("its cache holds no attention")

    monkeypatch.setattr(type(module), "forward", fails)
    with pytest.raises(UnsupportedError, match=r"^MixtralForCausalLM: transformers cannot run it with a cache \(Value"):
        import_module(module, cache=True)
