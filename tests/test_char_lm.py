"""The whole model in examples/char_lm: recognised, as good as it was trained, the same however it is called."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import moec
from moec.runtime import machine

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "char_lm"
HELDOUT_LOSS = 1.3783  # what PyTorch and onnxruntime compute as well


@pytest.fixture(scope="module")
def model(char_lm: pathlib.Path) -> moec.CompiledModel:
    return moec.load(char_lm)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    with np.load(EXAMPLE / "inputs.npz") as inputs:
        return inputs["ids"]


@pytest.fixture(scope="module")
def evaluation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate", EXAMPLE / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_layers_are_one_operator_each(model: moec.CompiledModel) -> None:
    blocks = model.describe()["moe_blocks"]
    actual = [(block["op"], block["num_experts"], block["top_k"], block["activation"]) for block in blocks]
    assert actual == [("moec.MoE", 8, 2, "silu")] * 2
    assert [(block["hidden_size"], block["intermediate_size"]) for block in blocks] == [(64, 48)] * 2


def test_loss_on_text_it_was_not_trained_on(model: moec.CompiledModel, evaluation: ModuleType) -> None:
    with np.load(EXAMPLE / "heldout.npz") as heldout:
        assert evaluation.loss(model, heldout["ids"]) == pytest.approx(HELDOUT_LOSS, abs=5e-5)


def test_continues_a_prompt(model: moec.CompiledModel, evaluation: ModuleType) -> None:
    assert evaluation.complete(model, "The return value is ", 8) == "The return value is a string"
    with pytest.raises(ValueError, match="expected at least one character, all printable ASCII or newlines"):
        evaluation.encode("é")


def test_agrees_with_onnxruntime_for_every_size(model: moec.CompiledModel) -> None:
    from moec.tools.verify import verify

    for batch, length in ((1, 1), (3, 5), (1, 97), (17, 33)):
        inputs = {"ids": np.random.default_rng(length).integers(0, 96, (batch, length))}
        verification = verify(EXAMPLE / "model.onnx", model, inputs, None)
        assert verification.matches
        assert not verification.failures


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_no_tokens(model: moec.CompiledModel, shape: tuple[int, int]) -> None:
    assert model(np.empty(shape, np.int64))["logits"].shape == (*shape, 96)


def test_any_memory_layout(model: moec.CompiledModel, ids: np.ndarray) -> None:
    expected = model(ids)["logits"]
    strided = np.repeat(ids, 2, axis=1)[:, ::2]
    misaligned = np.frombuffer(b"\0" + ids.tobytes(), np.uint8)[1:].view(np.int64).reshape(ids.shape)
    for layout in (strided, np.asfortranarray(ids), misaligned):
        np.testing.assert_array_equal(model(layout)["logits"], expected)


def test_every_number_of_threads_gives_the_same_bits(
    char_lm: pathlib.Path,
    ids: np.ndarray,
    in_pool: Callable[[int, Callable[[], Any]], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: (0, 1, 2))  # so that fewer cores do not limit the threads
    models = [moec.load(char_lm, threads=threads) for threads in (1, 2, 3)]
    results = [in_pool(model.threads, lambda model=model: model(ids)["logits"]) for model in models]
    assert [model.threads for model in models] == [1, 2, 3]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_several_python_threads_share_one_model(model: moec.CompiledModel, ids: np.ndarray, in_python_threads) -> None:
    inputs = [np.roll(ids, shift, axis=1)[: shift + 1] for shift in range(4)]
    expected = [model(ids)["logits"] for ids in inputs]

    def always_right(position: int) -> bool:
        return all(np.array_equal(model(inputs[position])["logits"], expected[position]) for _ in range(5))

    assert in_python_threads(4, always_right) == [True] * 4


def test_saved_loaded_and_read(model: moec.CompiledModel, ids: np.ndarray, tmp_path: pathlib.Path) -> None:
    model.save(tmp_path / "copy.zip")
    copy = moec.load(tmp_path / "copy.zip")
    np.testing.assert_array_equal(copy.run({"ids": ids})["logits"], model(ids)["logits"])
    grouped = next(name for name, kernel in copy.kernels.items() if kernel.op == "moec.MoE" and "gemm" in name)
    for form, sign in (("tir", "def "), ("llvm", "define "), ("asm", "ret")):
        assert sign in copy.kernels[grouped].source(form)
