"""Fixtures of tests that need a GPU that moec has code for; elsewhere these tests are skipped. ``target``: the target
for that GPU. ``layer``: an MoE layer as a file. ``torch``: PyTorch that can use the GPU."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from types import ModuleType

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from moec.common.errors import MoecError
from moec.targets.cuda.device.driver import open_driver
from moec.targets.cuda.device.gpu import best_binary
from moec.targets.cuda.hardware.architectures import LIMITS

EXPERTS, WIDTH, HIDDEN = 8, 256, 128
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_LAYER = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
layer ({dtype}[T,{width}] x, {dtype}[T,{experts}] logits) => ({dtype}[T,{width}] y) {{
    y = moec.MoE <k = 2> (x, logits, , up, down)
}}"""


@functools.cache
def obstacle() -> str | None:
    """The reason why these tests cannot run here, or None."""
    try:
        gpus = open_driver().gpus()
        if not gpus:
            return "the driver finds no GPU"
        best_binary(list(LIMITS), gpus[0].capability, "moec")
    except MoecError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = obstacle()
    if reason is None:
        return
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def target() -> str:
    best = best_binary(list(LIMITS), open_driver().gpus()[0].capability, "moec")
    return f"cuda:{best}"


@pytest.fixture
def layer(tmp_path: pathlib.Path) -> Callable[[str], pathlib.Path]:
    """A function that saves a layer of SwiGLU experts, two for each token: ``layer("bfloat16")`` is its path."""

    def save(dtype: str) -> pathlib.Path:
        text = _LAYER.format(dtype="float" if dtype == "float32" else dtype, width=WIDTH, experts=EXPERTS)
        model, random = onnx.parser.parse_model(text), np.random.default_rng(0)
        for name, shape in {"up": (EXPERTS, 2 * HIDDEN, WIDTH), "down": (EXPERTS, WIDTH, HIDDEN)}.items():
            array = (random.standard_normal(shape) / np.sqrt(shape[2])).astype(DTYPES[dtype])
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        onnx.save(model, tmp_path / "layer.onnx")
        return tmp_path / "layer.onnx"

    return save


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch is installed without CUDA")
    return torch
