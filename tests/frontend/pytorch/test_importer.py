"""PyTorch modules through torch.export: a small MoE module and a transformers model with random weights."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

TOLERANCE = 2e-5


class SmallMoe(torch.nn.Module):
    """Top-2 of 6 experts, softmax over the selected logits, SwiGLU, batched gather of weights per token."""

    def __init__(self, experts: int = 6, hidden: int = 32, intermediate: int = 40) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(hidden, experts, bias=False)
        self.up = torch.nn.Parameter(torch.randn(experts, 2 * intermediate, hidden) / hidden**0.5)
        self.down = torch.nn.Parameter(torch.randn(experts, hidden, intermediate) / intermediate**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = torch.topk(self.gate(x), 2, dim=-1)
        weights = torch.softmax(scores, dim=-1)
        rows = x.repeat_interleave(2, dim=0).unsqueeze(-1)
        flat = chosen.reshape(-1)
        gate, up = torch.bmm(self.up[flat], rows).squeeze(-1).chunk(2, dim=-1)
        hidden = (torch.nn.functional.silu(gate) * up).unsqueeze(-1)
        y = torch.bmm(self.down[flat], hidden).squeeze(-1) * weights.reshape(-1, 1)
        return y.view(x.shape[0], 2, x.shape[1]).sum(dim=1)


class BranchesOnData(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


@pytest.fixture(scope="module")
def small() -> SmallMoe:
    torch.manual_seed(0)
    return SmallMoe().eval()


@pytest.fixture(scope="module")
def compiled(small: SmallMoe) -> moec.CompiledModel:
    return moec.compile(small, (torch.randn(5, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def test_small_module_is_raised(compiled: moec.CompiledModel) -> None:
    (block,) = compiled.describe()["moe_blocks"]
    assert (block["num_experts"], block["top_k"], block["activation"]) == (6, 2, "silu")


@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
def test_small_module_matches_pytorch(small: SmallMoe, compiled: moec.CompiledModel, tokens: int) -> None:
    x = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(tokens))
    with torch.no_grad():
        expected = small(x).numpy()
    got = compiled(x)["output"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_transformers_model_with_batched_experts() -> None:
    transformers = pytest.importorskip("transformers", reason='needs the extra "torch": pip install "moec[torch]"')
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    dynamic = torch.export.Dim.DYNAMIC
    compiled = moec.compile(
        module,
        {"input_ids": torch.zeros(2, 7, dtype=torch.int64)},
        dynamic_shapes={"input_ids": {0: dynamic, 1: dynamic}},
    )
    assert [(b["num_experts"], b["top_k"]) for b in compiled.describe()["moe_blocks"]] == [(4, 2)]
    for batch, length in ((1, 1), (3, 17)):
        ids = torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = module(ids).logits.numpy()
        np.testing.assert_allclose(compiled.run({"input_ids": ids})["logits"], expected, atol=2e-4)


def test_training_mode_is_refused() -> None:
    with pytest.raises(MoecError, match=r"training mode.*call module\.eval\(\)"):
        moec.compile(SmallMoe(), (torch.randn(5, 32),))


def test_example_inputs_of_the_wrong_kind_are_refused(small: SmallMoe) -> None:
    with pytest.raises(MoecError, match="expected a tuple of positional or a dict"):
        moec.compile(small, torch.randn(5, 32))


class WithoutOperator(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named_in_one_plain_line() -> None:
    with pytest.raises(UnsupportedError, match=r"WithoutOperator: .*No ONNX function found for .*bessel_j0") as caught:
        moec.compile(WithoutOperator().eval(), (torch.randn(3),))
    assert str(caught.value).isprintable()


def test_a_module_pytorch_cannot_export_is_named() -> None:
    with pytest.raises(UnsupportedError, match="BranchesOnData: PyTorch could not export it"):
        moec.compile(BranchesOnData().eval(), (torch.randn(3),))


def test_errors_that_pytorch_raises_and_logs_are_told_once(caplog, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 28, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 1}
    config = transformers.Qwen2MoeConfig(vocab_size=17, num_experts=2, moe_intermediate_size=8, **sizes)
    wrong = transformers.Qwen2MoeForCausalLM(config).eval()  # rotary embeddings need an even size of heads, not 9
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    with pytest.raises(MoecError, match=r"Qwen2MoeForCausalLM: .*\(RuntimeError"):
        moec.compile(wrong, cache=True)
    assert not [record for record in caplog.records if record.name == logger.name]
