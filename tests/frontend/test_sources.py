"""Objects of PyTorch passed to ``moec.compile``: they work, or one line says what to pass instead."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import moec
from moec.common.errors import MoecError

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

X = (torch.linspace(-2, 2, 15).reshape(5, 3),)
DYNAMIC: Any = ({0: torch.export.Dim.DYNAMIC},)


class Affine(torch.nn.Module):
    def __init__(self, weight: Any, shift: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)
        self.register_buffer("shift", shift)

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.shift


def affine() -> Any:
    return Affine(torch.arange(6.0).reshape(3, 2), torch.tensor([1.0, -1.0])).eval()


def of_views() -> Any:
    """A transposed weight, and a buffer that PyTorch has negated lazily."""
    shift = torch.tensor([1 + 2j, 3 - 1j]).conj().imag
    assert shift.is_neg()
    return Affine(torch.arange(6.0).reshape(2, 3).t(), shift).eval()


SOURCES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "module": lambda: (affine(), X, DYNAMIC),
    "module of views": lambda: (of_views(), X, DYNAMIC),
    "module that torch.compile has wrapped": lambda: (torch.compile(affine()), X, DYNAMIC),
    "GraphModule": lambda: (torch.fx.symbolic_trace(affine()), X, DYNAMIC),
    "ExportedProgram": lambda: (torch.export.export(affine(), X, dynamic_shapes=DYNAMIC), None, None),
    "ONNXProgram": lambda: (torch.onnx.export(affine(), X, dynamo=True, dynamic_shapes=DYNAMIC), None, None),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_computes_what_the_module_does(kind: str) -> None:
    source, example_inputs, dynamic_shapes = SOURCES[kind]()
    model = moec.compile(source, example_inputs, dynamic_shapes=dynamic_shapes, threads=1)
    module = of_views() if kind == "module of views" else affine()
    for x in (X[0], X[0][:1]):
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(model(x)["output"]), module(x))


def test_a_model_takes_tensors_of_any_layout() -> None:
    model = moec.compile(affine(), X, dynamic_shapes=DYNAMIC, threads=1)
    wide = torch.randn(3, 8)
    for x in (wide.t(), wide.t()[::2], torch.randn(3, dtype=torch.complex64).conj().imag.expand(4, 3)):
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(model(x)["output"]), affine()(x))


def on_meta() -> Any:
    with torch.device("meta"):
        return torch.nn.Linear(2, 2).eval()


def file(folder: pathlib.Path, name: str) -> str:
    path = folder / name
    path.write_bytes(b"anything")
    return str(path)


REFUSED: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "meta device": (lambda _: on_meta(), r"^Linear: weight is on the meta device, .*; give the module its weights"),
    "safetensors": (lambda at: file(at, "model.safetensors"), r"model\.safetensors: holds weights and no model; pass"),
    "pickled": (lambda at: file(at, "pytorch_model.bin"), r"pytorch_model\.bin: is pickled, which is never opened"),
    "saved program": (lambda at: file(at, "model.pt2"), r"model\.pt2: is an exported program; .*torch\.export\.load"),
    "gguf": (lambda at: file(at, "model.gguf"), r"model\.gguf: is not a GGUF file"),
    "state dict": (lambda _: affine().state_dict(), r"^cannot compile a dict; expected a model: if these are weights"),
    "tensor": (lambda _: X[0], r"^cannot compile a tensor; pass the module that computes with it$"),
    "hub name": (lambda _: "Qwen/Qwen3-30B-A3B", r"^Qwen/Qwen3-30B-A3B: .* hf download Qwen/Qwen3-30B-A3B --local-"),
    "no file": (lambda at: str(at / "model.onnx"), r"model\.onnx: no such file; expected an ONNX model, a GGUF"),
    "empty folder": (str, r": has no config\.json; expected an ONNX file, or a folder of a Hugging Face model"),
    "training mode": (lambda _: torch.nn.Linear(2, 2), r"^Linear is in training mode, .*: call module\.eval\(\) first"),
    "no example inputs": (lambda _: affine(), r"^Affine: compiling a PyTorch module needs example_inputs=\(\.\.\.\)$"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_model_is_refused_in_one_line_that_says_what_to_do(kind: str, tmp_path: pathlib.Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(MoecError, match=message) as caught:
        moec.compile(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_what_was_exported_takes_no_example_inputs() -> None:
    with pytest.raises(MoecError, match="example_inputs and dynamic_shapes are for PyTorch modules"):
        moec.compile(torch.export.export(affine(), X), X)
