"""The benchmark on a GPU, as far as it runs without one: layers, contestants on a processor, sorting, tables."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip('needs the extra "torch"', allow_module_level=True)
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import gpu_contestants
import gpu_layers
import gpu_moe
import ml_dtypes
import numpy as np
import torch
from gpu_sorting import PADDING, most_blocks, sort_pairs
from layers import Layer

from moec.common.roofline import Peak, Roofline
from moec.ir import interpreter

LAYER = Layer("tiny", 64, 32, 8, 3)


@pytest.fixture(scope="module")
def weights():
    return gpu_layers.make_weights(LAYER, "cpu")


def test_reference_is_the_plain_formula(weights):
    x, logits = gpu_layers.make_inputs(LAYER, 5, "cpu")
    scores, ids = gpu_layers.route(logits, LAYER.chosen)
    assert torch.allclose(scores.sum(1), torch.ones(5))
    both = torch.einsum("tkod,td->tko", weights.up.float()[ids], x.float())
    hidden = torch.nn.functional.silu(both[..., : LAYER.hidden]) * both[..., LAYER.hidden :]
    expected = torch.einsum("tkdf,tkf,tk->td", weights.down.float()[ids], hidden, scores)
    torch.testing.assert_close(gpu_layers.reference(weights, x, logits), expected, rtol=1e-4, atol=1e-5)


def test_moec_compiles_that_layer(weights):
    x, logits = gpu_layers.make_inputs(LAYER, 5, "cpu")
    feeds = {"x": x.float().numpy(), "logits": logits.float().numpy()}
    feeds = {name: array.astype(ml_dtypes.bfloat16) for name, array in feeds.items()}
    y = interpreter.run(gpu_contestants.layer_model(weights), feeds, dtype=np.float64)["y"]
    np.testing.assert_allclose(y, gpu_layers.reference(weights, x, logits).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["grouped_mm", "transformers"])
def test_contestants_compute_the_layer(weights, name):
    if name == "transformers":
        pytest.importorskip("transformers", minversion="5.0")
    contestant = gpu_contestants.CONTESTANTS[name](weights, "cpu")
    for tokens in (1, 40):
        x, logits = gpu_layers.make_inputs(LAYER, tokens, "cpu")
        expected = gpu_layers.reference(weights, x, logits)
        actual = contestant.call(x, logits)
        error = gpu_contestants.relative_error(actual, expected)
        limit = gpu_moe.LARGEST_ERROR_OF_BFLOAT16
        assert error < limit
        assert gpu_contestants.relative_error(actual + expected.abs().max(), expected) > limit


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_who_is_not_installed_is_absent(weights):
    with pytest.raises(gpu_contestants.AbsentError, match="triton is not installed"):
        gpu_contestants.CONTESTANTS["triton"](weights, "cuda")


@pytest.mark.parametrize("tokens", [1, 7, 100])
@pytest.mark.parametrize("skewed", [False, True])
def test_pairs_are_sorted_into_blocks_of_one_expert(tokens, skewed):
    rows, experts = 4, 6
    ids = torch.argsort(torch.rand(tokens, experts), dim=1)[:, :2]
    if skewed:
        ids[:] = torch.tensor([5, 0])
    order = sort_pairs(ids, experts, rows)
    assert len(order.experts) == most_blocks(2 * tokens, experts, rows)
    owners, pairs = order.experts.repeat_interleave(rows), order.pairs
    real = pairs != PADDING
    assert sorted(pairs[real].tolist()) == list(range(2 * tokens))
    assert torch.equal(owners[real].long(), ids.flatten()[pairs[real].long()])


def test_tables_show_shares_of_what_was_measured():
    rows = [
        gpu_moe.Figures("qwen3", 16, "moec", 1e-3, 0.01, 10**12, 10**9),
        gpu_moe.Figures("qwen3", 16, "triton", 2e-3, 0.01, 10**12, 10**9),
    ]
    (table,) = gpu_moe.tables(rows, Roofline(1, {"copied": 2e12}, (Peak("bfloat16", "matrix product", 4e15),)))
    shown = [list(column.cells) for column in table.columns]
    assert shown[gpu_moe.COLUMNS.index("TFLOP/s")] == ["1000.0", "500.0"]
    assert shown[gpu_moe.COLUMNS.index("of matmul peak")] == ["0.25", "0.12"]
    assert shown[gpu_moe.COLUMNS.index("of copy bandwidth")] == ["0.50", "0.25"]
    assert shown[gpu_moe.COLUMNS.index("time / moec's")] == ["1.00", "2.00"]


def test_contestants_that_fail_or_compute_something_else_are_told_and_left_out():
    def fails(_x, _logits):
        raise RuntimeError("it fell over")

    x, reported = torch.ones(3, 4), []
    calls = {"moec": lambda x, _: x, "triton": lambda x, _: 2 * x, "vllm": fails}
    contestants = {name: gpu_contestants.Contestant(call) for name, call in calls.items()}
    assert gpu_moe.errors_of(contestants, x, None, x, reported.append) == {"moec": 0.0}
    assert reported[0].startswith("triton with 3 tokens: its results are wrong, error 1")
    assert reported[1] == "vllm with 3 tokens: RuntimeError: it fell over"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, gpu_moe.__file__], capture_output=True, text=True)
    assert done.returncode == gpu_moe.NO_GPU
    assert done.stderr.startswith("gpu_moe.py needs a GPU: ")
    assert done.stderr.count("\n") == 1
