"""Carving feed-forward layers into experts (``examples/smollm2_moe``), on a small random model of that architecture."""

from __future__ import annotations

import copy
import importlib.util
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("scipy")

_PATH = pathlib.Path(__file__).parents[1] / "examples" / "smollm2_moe" / "carve.py"
LAYERS, HIDDEN, PARTS, SHARED = 2, 64, 8, 2


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("carve", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def rows():
    return torch.randint(97, (6, 16), generator=torch.Generator().manual_seed(1))


def carved(example, dense, rows, active: int):
    model = copy.deepcopy(dense)
    for layer, fires in zip(model.model.layers, list(example.firing(dense, rows)), strict=True):
        layer.mlp = example.Carved(layer.mlp, example.carve(fires, PARTS, SHARED), PARTS, SHARED, active)
    return model


def logits(model, rows):
    with torch.no_grad():
        return model(input_ids=rows).logits


def test_all_experts_together_are_the_dense_model(example, dense, rows):
    expected = logits(dense, rows)
    torch.testing.assert_close(
        logits(carved(example, dense, rows, PARTS - SHARED), rows), expected, rtol=1e-4, atol=1e-4
    )
    fewer = logits(carved(example, dense, rows, 2), rows)
    assert (fewer - expected).abs().max() > 0.01


def test_experts_are_equal_parts_of_units_that_fire_together(example):
    """Units of two kinds, which fire for either half of the tokens, and one that always does."""
    fires = np.zeros((40, 12), np.float32)
    fires[:, 11] = 1
    kinds = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    for unit, kind in enumerate(kinds):
        fires[20 * kind : 20 * kind + 18, unit] = 1
    order = example.carve(fires, 6, 1)
    assert sorted(order) == list(range(12))
    assert 11 in order[:2]
    parts = example.carve(fires[:, :10], 2, 0).reshape(2, 5)
    assert [set(kinds[part]) for part in parts] == [{0}, {1}]


def test_rotary_pairs_are_moved_back(example):
    weight = torch.arange(4.0 * 8 * 3).reshape(32, 3)
    as_llama_cpp = weight.reshape(4, 2, 4, 3).transpose(1, 2).reshape(32, 3)
    torch.testing.assert_close(example.halves_of_heads(as_llama_cpp, 4), weight)


@pytest.mark.slow
def test_layers_are_found_in_the_export(example, dense, rows, tmp_path):
    pytest.importorskip("onnxscript")
    from moec.compiling import compiler
    from moec.ir import interpreter
    from moec.ir.dialect import RouteSpec, has_experts, spec_of
    from moec.passes import pipeline
    from moec.passes.framework.base import Report

    model = carved(example, dense, rows, 3)
    example.export(model, tmp_path / "model.onnx")
    graph = compiler.import_model(tmp_path / "model.onnx")
    pipeline.run(graph, pipeline.parse("O2"), Report())
    layers = [node for node in graph.graph if has_experts(node)]
    assert len(layers) == LAYERS
    assert all(spec_of(node, RouteSpec).k == 3 for node in layers if node.op_type == "MoE")
    (actual,) = interpreter.run(graph, {"ids": rows.numpy()}).values()
    np.testing.assert_allclose(actual, logits(model, rows).numpy(), rtol=1e-3, atol=1e-3)
