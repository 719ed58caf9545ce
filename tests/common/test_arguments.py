"""Arguments of wrong types: one line names the argument, the actual and the expected value."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib

import numpy as np
import onnx
import pytest

import moec
from moec.common.errors import MoecError
from moec.compiling.compile_options import CompileOptions
from moec.exporting.export_options import ExportOptions
from moec.runtime.load_options import LoadOptions
from moec.tools.verify import verify

TEXT = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments")
    onnx.save(onnx.parser.parse_model(TEXT), folder / "model.onnx")
    moec.compile(folder / "model.onnx", output=folder / "model.moec", passes="O0")
    return folder


def refused(name: str, call, *arguments, **options) -> None:
    with pytest.raises(MoecError, match=rf"{name} .*; expected ") as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("path", value) for value in (None, 3, b"model.moec", "", "a\0b", ["model.moec"])),
        *(("threads", value) for value in ("2", 2.0, True, [2], 0)),
        *(("pages", value) for value in ("bogus", None, 1, ["huge"])),
        *(("check_weights", value) for value in (None, "yes")),
        *(("emulate", value) for value in (None, 1)),
        *(("cuda_graphs", value) for value in (None, 1)),
        ("architecture", 80),
    ],
)
def test_load(folder, name, value):
    options = {"path": folder / "model.moec", name: value}
    refused(name, moec.load, options.pop("path"), **options)


@pytest.mark.parametrize("inputs", [None, 3, [np.ones((1, 4), np.float32)], np.ones((1, 4), np.float32), "x"])
def test_run(folder, inputs):
    model = moec.load(folder / "model.moec")
    refused("inputs are", model.run, inputs)


@pytest.mark.parametrize(
    "value", [None, 3, "text", [[1.0] * 4], {"a": 1}, np.array([["a"] * 4]), np.array([[None] * 4])]
)
def test_run_with_a_value_that_is_no_array(folder, value):
    model = moec.load(folder / "model.moec")
    refused("input 'x'", model.run, {"x": value})
    with pytest.raises(MoecError, match="unknown input 3; expected: x float32"):
        model.run({3: np.ones((1, 4), np.float32)})


@pytest.mark.parametrize("path", [None, 3, b"out", "", "a\0b"])
def test_save(folder, path):
    refused("path", moec.load(folder / "model.moec").save, path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("target", value) for value in (None, 3, b"cpu", ["cpu"])),
        *(("passes", value) for value in (2, ["O2"])),
        *(("threads", value) for value in ("2", 2.0, True)),
        *(("experts", value) for value in (4, b"int4")),
        ("linears", 8),
        *(("output", value) for value in (3, b"out", "", "a\0b")),
        ("progress", "loud"),
        ("verify_each", 1),
        ("emulate", "no"),
    ],
)
def test_compile(folder, tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    refused("path" if name == "output" else name, moec.compile, folder / "model.onnx", **{name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [None, 3, b"model.onnx", ["model.onnx"], {}, object()])
def test_compile_something_else(model):
    with pytest.raises(MoecError, match="expected") as caught:
        moec.compile(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_path", None),
        ("model_path", 3),
        ("compiled", None),
        ("compiled", pathlib.Path("model.moec")),
        ("inputs", [1]),
        ("tolerance", "small"),
        ("tolerance", -1.0),
        ("tolerance", float("nan")),
    ],
)
def test_verify(folder, name, value):
    options = {"model_path": folder / "model.onnx", "compiled": moec.load(folder / "model.moec"), name: value}
    refused(name, verify, **options)


def test_right_ones_are_taken(folder, tmp_path):
    model = moec.load(str(folder / "model.moec"), threads=np.int64(1).item(), pages="mapped")
    model.save(str(tmp_path / "copy.moec"))
    assert verify(folder / "model.onnx", model, tolerance=0).matches


@pytest.mark.parametrize(
    ("function", "kind", "others"),
    [
        (moec.compile, CompileOptions, {"model", "output", "emulate"}),
        (moec.export, ExportOptions, {"model", "output", "form"}),
        (moec.load, LoadOptions, {"path"}),
    ],
)
def test_every_argument_is_an_option(function, kind, others):
    assert set(inspect.signature(function).parameters) - others <= {field.name for field in dataclasses.fields(kind)}
