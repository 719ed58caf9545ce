"""Launches of several kernels, and the launches of a decode step."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

import onnx.parser
import onnx_ir as ir
import pytest

import moec
from moec import targets
from moec.common.kernel_sizes import evaluate
from moec.runtime.artifact import open_artifact
from moec.targets.cuda import nvcc

from ....frontend.gguf.tiny_models import write_model


@pytest.fixture(autouse=True)
def without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda _name: None)


LAUNCHES = [("mixtral", 12, 11), ("granitemoe", 16, 13), ("qwen3moe", 13, 11)]
"""Models, their launches per layer, and those outside of layers. Granite's layer has a shared expert in four launches,
a product each for gate, up and down and one for the activation."""


def names(body: str) -> list[str]:
    scale = ",".join(["1.5"] * 64)
    head = (
        '<ir_version: 10, opset_import: ["" : 24]> g (float[T,64] x, float[S,64] y) => (float[T,64] v, float[S,64] w)'
    )
    text = f"{head} <float[64] scale = {{{scale}}}> {{{body}}}"
    program = targets.get("cuda:sm_80").compile(ir.from_proto(onnx.parser.parse_model(text)))
    return [kernel.name for kernel in program.kernels]


def test_normalisations_of_different_rows_share_a_launch():
    (name,) = names("v = RMSNormalization (x, scale) w = RMSNormalization (y, scale)")
    assert name == "norm_norm"


def test_what_needs_a_result_or_has_other_threads_does_not_share_it():
    body = "a = RMSNormalization (x, scale) v = RMSNormalization (a, scale) w = Softmax (y)"
    assert sorted(names(body)) == ["rms_norm", "softmax"]


def _is_made(launch: Mapping[str, Any]) -> bool:
    """Whether a launch is made where every size is 1."""
    if launch["only_if"] is None:
        return True
    sizes, ones = launch["only_if"]["sizes"], collections.defaultdict[str, int](lambda: 1)
    size = evaluate(launch["only_if"]["size"], ones, launch["function"])
    return sizes["least"] <= size and (sizes["most"] is None or size <= sizes["most"])


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "layer", "others"), LAUNCHES)
def test_launches_of_a_decode_step(tmp_path: pathlib.Path, name: str, layer: int, others: int):
    """One token of a session: norms 2, queries, keys and values 1, rotation and appending 1, attention 2 and its
    transposition 1, output 1, router 1, experts 3. The models have two layers."""
    path = write_model(name, tmp_path / "model.gguf")
    moec.compile(path, target="cuda:sm_80", output=tmp_path / "model.moec", emulate=True)
    kernels = open_artifact(tmp_path / "model.moec").program().kernels
    assert sum(kernel["calls"] * sum(map(_is_made, kernel["launches"])) for kernel in kernels) == 2 * layer + others
