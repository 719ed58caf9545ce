"""Threads that load, compile and import at the same time, first thing in a process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import moec
from moec.runtime.library import without_torch

LOADING = """
import sys, threading, moec
barrier, lengths = threading.Barrier(8), []
def load():
    barrier.wait()
    lengths.append(len(moec.load(sys.argv[1], threads=1).inputs))
threads = [threading.Thread(target=load) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(lengths)
"""


def products(seed: int) -> onnx.ModelProto:
    weight = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_threads_that_load_first_all_load(tmp_path):
    moec.compile(products(0), output=tmp_path / "m.moec")
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path / "m.moec")], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (str([1] * 8), "")


def test_threads_compile_different_models_at_once():
    x, actual = np.ones((3, 8), np.float32), {}
    barrier = threading.Barrier(4)

    def compile_and_run(seed):
        barrier.wait()
        actual[seed] = moec.compile(products(seed), passes="O1").run({"x": x})["y"]

    threads = [threading.Thread(target=compile_and_run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        expected = x @ numpy_helper.to_array(products(seed).graph.initializer[0])
        np.testing.assert_allclose(actual[seed], expected, rtol=1e-5, atol=1e-6)


def test_torch_is_missing_in_the_thread_that_goes_without_it_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # who has it gets it
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    actual = []
    with without_torch():
        with pytest.raises(ModuleNotFoundError, match="torch"):
            import torch  # noqa: F401
        thread = threading.Thread(target=lambda: actual.append(importlib.util.find_spec("torch")))
        thread.start()
        thread.join()
    assert actual[0] is not None and importlib.util.find_spec("torch") is not None
