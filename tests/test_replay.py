"""Process replay: what is recorded of a model, and what a comparison of records says."""

from __future__ import annotations

import importlib.util
import pathlib

import onnx
import pytest

TOOL = pathlib.Path(__file__).resolve().parent.parent / "tools" / "replay.py"


@pytest.fixture(scope="module")
def replay():
    spec = importlib.util.spec_from_file_location("replay", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_model(path: pathlib.Path, body: str) -> pathlib.Path:
    path.parent.mkdir(parents=True)
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g (float[N,4] x) {body}'), path)
    return path


def test_a_record_holds_ir_texts_and_a_digest_of_weights(replay, tmp_path):
    body = "=> (float[N,4] y) <float[4] w = {1, 2, 3, 4}> { z = Mul(x, w) y = Relu(z) }"
    model = write_model(tmp_path / "models" / "small" / "model.onnx", body)
    assert replay.models_of([tmp_path / "models", model]) == {"small": model.resolve()}
    for name in ("before", "after"):
        replay.record(model, "cpu", tmp_path / name)
    kept = {file.relative_to(tmp_path / "before") for file in (tmp_path / "before").rglob("*") if file.is_file()}
    assert {file.suffix for file in kept} == {".onnxtxt", ".tir", ".relax", ".sha256"}
    assert list(replay.differences(tmp_path / "before", tmp_path / "after")) == []


def test_a_refusal_is_recorded(replay, tmp_path):
    model = write_model(tmp_path / "models" / "odd" / "model.onnx", "=> (float y) { y = NoSuchOperator(x) }")
    replay.record(model, "cpu", tmp_path / "odd")
    (file,) = (tmp_path / "odd").iterdir()
    assert "NoSuchOperator" in file.read_text() and str(tmp_path) not in file.read_text()


def test_differences_name_the_first_line_and_what_is_missing(replay, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, text in ((before, "a\nb\nc\n"), (after, "a\nB\nc\n")):
        folder.mkdir()
        (folder / "kernel.tir").write_text(text)
        (folder / "same.tir").write_text("x\n")
    (after / "new.tir").write_text("x\n")
    assert list(replay.differences(before, after)) == ["kernel.tir:2\n  - b\n  + B", f"new.tir: only in {after}"]


def test_two_empty_records_are_no_match(replay, tmp_path):
    (message,) = replay.differences(tmp_path / "none", tmp_path / "nothing")
    assert "hold nothing" in message
