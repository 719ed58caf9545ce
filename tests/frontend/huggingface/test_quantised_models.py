"""Whole models with quantised weights: experts and dense products keep their formats through the passes."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.errors import UnsupportedError
from moec.frontend.huggingface.folder import import_folder
from moec.ir.dialect import is_moec
from moec.ir.interpreter import run
from moec.ir.weights.stored import stored_weights
from moec.passes.framework import pipeline
from tests.frontend.huggingface.models import change_config, mixtral, saved, torch, transformers
from tests.frontend.huggingface.test_quantised import along

safetensors = pytest.importorskip("safetensors.numpy")
GROUP, BITS = 32, 4
RNG = np.random.default_rng(0)


def gptq(weight: np.ndarray, order: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A weight [out,in] rounded somehow: its tensors, and what they stand for."""
    group = np.arange(weight.shape[1]) // GROUP
    group = RNG.permutation(group) if order else group
    scale = np.full((weight.shape[0], weight.shape[1] // GROUP), np.abs(weight).max() / 6, np.float16)
    zero = RNG.integers(6, 10, scale.shape)
    q = np.clip(np.round(weight / scale[:, group].astype(np.float32)) + zero[:, group], 0, 15)
    parts = {
        "qweight": along(q.T, BITS, 0),
        "qzeros": np.ascontiguousarray(along((zero - 1) % 16, BITS, 0).T),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": group.astype(np.int32),
    }
    return parts, ((q - zero[:, group]) * scale[:, group].astype(np.float32)).astype(np.float32)


def quantise(folder: pathlib.Path, places: tuple[str, ...], order: tuple[str, ...]) -> Any:
    """Rounds the weights of a folder whose names have one of ``places``; those that have one of ``order`` by act-order.
    Returns the model that its numbers stand for."""
    path = folder / "model.safetensors"
    plain = safetensors.load_file(path)
    stored = dict(plain)
    for name, weight in plain.items():
        if any(place in name for place in places):
            parts, plain[name] = gptq(weight, any(place in name for place in order))
            del stored[name]
            stored |= {name.removesuffix("weight") + end: array for end, array in parts.items()}
    safetensors.save_file(plain, path, metadata={"format": "pt"})
    module = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    safetensors.save_file(stored, path, metadata={"format": "pt"})
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": BITS, "group_size": GROUP})
    return module


def optimised(folder: pathlib.Path) -> ir.Model:
    model = import_folder(folder)
    pipeline.run(model, pipeline.parse("O2"))
    return model


def formats(model: ir.Model, operator: str) -> list[set[str]]:
    """The formats of the weights of all moec nodes with this operator."""
    nodes = [node for node in model.graph if is_moec(node, operator)]
    return [{str(form) for weight in stored_weights(node).values() for form in weight.formats} for node in nodes]


def agree(model: ir.Model, module: Any) -> None:
    ids = RNG.integers(0, 64, (2, 9))
    with torch.no_grad():
        expected = module(input_ids=torch.from_numpy(ids)).logits.numpy()
    found = run(model, {"input_ids": ids})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_experts_and_dense_products_stay_in_four_bits(tmp_path: pathlib.Path) -> None:
    folder = saved(mixtral(num_hidden_layers=1, hidden_size=64), tmp_path)
    module = quantise(folder, ("experts", "_proj"), ("q_proj", "o_proj"))
    model = optimised(folder)
    assert formats(model, "MoE") == [{"int4/32z"}]
    assert formats(model, "Linear") == [{"int4/32z"}] * 4
    agree(model, module)


def test_experts_in_orders_of_their_own_are_refused(tmp_path: pathlib.Path) -> None:
    folder = saved(mixtral(num_hidden_layers=1, hidden_size=64), tmp_path)
    quantise(folder, ("experts",), ("experts",))
    with pytest.raises(UnsupportedError, match=r"\(act-order\), and model.layers.0.mlp.experts.* is made of several"):
        import_folder(folder)
