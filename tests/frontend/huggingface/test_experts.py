"""Specifications derived from experts modules of transformers, and modules that are refused."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.experts import experts_model, experts_spec
from moec.ir.dialect import ExpertsSpec
from moec.ir.interpreter import run

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
activations = pytest.importorskip(
    "transformers.activations", reason='needs the extra "torch": pip install "moec[torch]"'
)
pytest.importorskip("transformers.integrations.moe", reason="needs transformers 5")
Gate = Callable[[Any], Any]


class Experts(torch.nn.Module):
    """Three experts of four hidden units on rows of eight, with the fields that transformers' decorator sets."""

    def __init__(self, gate: Gate | None, act_fn: Gate = torch.nn.functional.silu, **fields: Any) -> None:
        super().__init__()
        self.has_gate, self.has_bias, self.is_transposed, self.has_post_expert_norm = (
            gate is not None,
            False,
            False,
            False,
        )
        self._is_expert_parallel = False
        self.act_fn, self._apply_gate = act_fn, gate
        vars(self).update(fields)
        self._add("gate_up_proj" if self.has_gate else "up_proj", 8 if self.has_gate else 4, 8)
        self._add("down_proj", 8, 4)

    def _add(self, name: str, outputs: int, inputs: int) -> None:
        shape = (3, inputs, outputs) if self.is_transposed else (3, outputs, inputs)
        setattr(self, name, torch.nn.Parameter(torch.randn(shape)))
        if self.has_bias:
            setattr(self, f"{name}_bias", torch.nn.Parameter(torch.randn(3, outputs)))


def halves(act: Gate) -> Gate:
    return lambda both: act(both.chunk(2, -1)[0]) * both.chunk(2, -1)[1]


def swapped(both: Any) -> Any:
    return torch.nn.functional.silu(both.chunk(2, -1)[1]) * both.chunk(2, -1)[0]


def clamped(both: Any) -> Any:
    """Gate function of gpt-oss."""
    gate, up = both[..., ::2].clamp(max=7.0), both[..., 1::2].clamp(-7.0, 7.0)
    return gate * torch.sigmoid(gate * 1.702) * (up + 1)


@pytest.mark.parametrize("name", ["silu", "gelu", "relu", "relu2", "sigmoid", "tanh"])
def test_an_activation_is_found_with_a_gate_and_without(name: str) -> None:
    act = activations.ACT2FN[name]
    assert experts_spec(Experts(halves(act)), "layer") == ExpertsSpec(name)
    assert experts_spec(Experts(None, act), "layer") == ExpertsSpec(name, "none")


def test_the_two_gelus_are_told_apart() -> None:
    assert experts_spec(Experts(halves(activations.ACT2FN["gelu_pytorch_tanh"])), "layer").activation == "gelu_tanh"
    assert experts_spec(Experts(halves(activations.ACT2FN["quick_gelu"])), "layer") == ExpertsSpec(alpha=1.702)


def test_layouts_are_found() -> None:
    assert experts_spec(Experts(swapped), "layer").gate_layout == "up_gate"
    assert experts_spec(Experts(clamped, bound=7.0), "layer") == ExpertsSpec(
        gate_layout="interleaved", alpha=1.702, limit=7.0, up_offset=1.0
    )


def test_a_limit_behind_the_activation_is_refused() -> None:
    def late(both: Any) -> Any:
        gate, up = both.chunk(2, -1)
        return torch.nn.functional.silu(gate).clamp(max=7.0) * up.clamp(-7.0, 7.0)

    with pytest.raises(UnsupportedError, match=r"^layer: its activation is not one of moec's experts: leave .*eager"):
        experts_spec(Experts(late, bound=7.0), "layer")


def test_a_limit_that_the_module_does_not_hold_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="its activation is not one"):
        experts_spec(Experts(clamped), "layer")


def test_an_activation_that_fails_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^layer: its activation could not be tried \(TypeError\)"):
        experts_spec(Experts(lambda gate, up: gate), "layer")


def test_a_norm_of_what_experts_return_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^layer: it normalises the result of every expert"):
        experts_spec(Experts(swapped, has_post_expert_norm=True), "layer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fields", [{}, {"is_transposed": True, "has_bias": True}], ids=["plain", "transposed, biased"])
def test_the_graph_computes_what_the_module_says(fields: dict[str, Any], dtype: Any) -> None:
    """The id 3, which belongs to no expert, is not dispatched."""
    module = Experts(swapped, **fields).to(dtype)
    x, weights, ids = torch.randn(5, 8), torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 3], [3, 3], [2, 1]])
    expected = torch.zeros(5, 8)
    for token, slot in np.ndindex(5, 2):
        if ids[token, slot] < 3:
            expected[token] += weights[token, slot] * one_expert(module.float(), x[token], ids[token, slot])
    feeds = {"x": x.numpy(), "weights": weights.numpy(), "experts": ids.numpy()}
    actual = run(experts_model(module.to(dtype), 2, "layer"), feeds)["y"]
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def one_expert(module: Experts, row: Any, expert: Any) -> Any:
    def product(row: Any, name: str) -> Any:
        weight = getattr(module, name)[expert]
        bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else 0
        return row @ (weight if module.is_transposed else weight.T) + bias

    return product(swapped(product(row, "gate_up_proj")), "down_proj")


def test_float32_weights_are_not_copied() -> None:
    module = Experts(swapped)
    tensor = experts_model(module, 2, "layer").graph.initializers["up"].const_value
    assert tensor.numpy().ctypes.data == module.gate_up_proj.data_ptr()


def test_other_types_and_places_of_weights_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^layer: gate_up_proj is torch.float64; expected float32, bfloat16"):
        experts_model(Experts(swapped).double(), 2, "layer")
    with pytest.raises(UnsupportedError, match=r"^layer: gate_up_proj is on meta; expected the processor's memory"):
        experts_model(Experts(swapped).to("meta"), 2, "layer")
    computed = Experts(swapped)
    del computed.down_proj
    computed.down_proj = types.SimpleNamespace(shape=(3, 8, 4))
    with pytest.raises(UnsupportedError, match=r"^layer: it has no parameter down_proj"):
        experts_model(computed, 2, "layer")
