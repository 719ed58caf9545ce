"""Launches of several kernels, and the launches of a decode step."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import onnx.parser
import onnx_ir as ir
import pytest
from tvm import relax

import moec
from moec import targets
from moec.common.kernel_sizes import evaluate
from moec.runtime.artifact import open_artifact
from moec.targets.cuda import nvcc
from moec.targets.gpu.lowering.side_by_side import side_by_side

from ....frontend.gguf.tiny_models import write_model
from .written_calls import Calls, kernels_after


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


@pytest.mark.nightly
def test_what_needs_a_result_or_has_other_threads_does_not_share_it():
    body = "a = RMSNormalization (x, scale) v = RMSNormalization (a, scale) w = Softmax (y)"
    assert sorted(names(body)) == ["rms_norm", "softmax"]


@pytest.mark.parametrize(
    ("write", "kernels"),
    [
        (lambda calls: [calls.append(calls.x, calls.state), calls.append(calls.x, calls.other)], ["append_append"]),
        (lambda calls: [calls.append(calls.x, calls.state), calls.append(calls.y, calls.state)], ["append"] * 2),
        (lambda calls: [calls.append(calls.x, calls.state), calls.first(calls.other)], ["append_first"]),
        (lambda calls: [calls.append(calls.x, calls.state), calls.first(calls.state)], ["append", "first"]),
        (lambda calls: [calls.first(calls.state), calls.append(calls.x, calls.state)], ["first", "append"]),
    ],
    ids=["two states", "one state", "reads another state", "reads what was written", "reads before it is written"],
)
def test_memory_is_read_and_written_in_order(write: Callable[[Calls], list[Any]], kernels: list[str]):
    assert kernels_after(lambda module: side_by_side(module)[0], write) == kernels


@pytest.mark.parametrize("is_read_between", [False, True])
def test_calls_that_need_an_early_result_wait(is_read_between: bool):
    """An append of a normalised row waits for two normalisations, except where its state is read first."""

    def write(calls: Calls) -> list[Any]:
        row = calls.builder.emit(relax.op.reshape(calls.norm(calls.x, calls.scale), [4, 2, 64]))
        appended = calls.append(row, calls.state)
        other = calls.first(calls.state) if is_read_between else calls.y
        return [appended, calls.norm(other, calls.scale)]

    expected = ["norm", "append", "first", "norm"] if is_read_between else ["norm_norm", "append"]
    assert kernels_after(lambda module: side_by_side(module)[0], write) == expected


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
