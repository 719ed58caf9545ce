"""Exports for onnxruntime, which loads and runs them."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import moec
from moec.common.errors import MoecError
from moec.compiling.compiler import find_blocks
from moec.tools.reference import open_session, run_session

from .conftest import D


def assert_equal(original: pathlib.Path, exported: pathlib.Path) -> None:
    sessions = [open_session(path, 1) for path in (original, exported)]
    for tokens in (5, 1, 0):
        x = np.random.default_rng(tokens).normal(size=(tokens, D)).astype(np.float32)
        expected, actual = (run_session(session, {"x": x})["y"] for session in sessions)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_a_file_has_the_operator_of_onnxruntime_and_the_same_results(model_path, tmp_path):
    output = tmp_path / "out.onnx"
    result = moec.export(model_path, output)
    assert [part.written_as for part in result.parts] == ["com.microsoft.MoE"] and not result.unwritten
    assert_equal(model_path, output)
    written = onnx.load(output)
    onnx.checker.check_model(written)
    assert {opset.domain for opset in written.opset_import} == {"", "com.microsoft"}
    weights = sum(array.nbytes for array in map(onnx.numpy_helper.to_array, onnx.load(model_path).graph.initializer))
    assert output.stat().st_size < weights + 5000


def test_a_folder_has_the_weights_beside_the_model(model_path, tmp_path):
    output = tmp_path / "out"
    moec.export(model_path, output, form="onnxruntime")
    assert sorted(path.name for path in output.iterdir()) == ["model.onnx", "model.onnx.data", "moec-files.txt"]
    assert (output / "model.onnx").stat().st_size < 8000
    assert_equal(model_path, output / "model.onnx")


@pytest.mark.parametrize("form", ["onnxruntime", "onnx"])
def test_large_weights_are_beside_a_file_and_are_replaced_with_it(model_path, tmp_path, monkeypatch, form):
    monkeypatch.setattr("moec.exporting.onnx_file._LARGEST_INLINE", 5000)
    output, before = tmp_path / "out.onnx", set()
    for experts in (None, None, "bf16"):
        (data,) = moec.export(model_path, output, form=form, experts=experts).companions
        assert set(tmp_path.iterdir()) == {output, data} and output.stat().st_size < 10_000
        assert (data in before) == (experts is None and bool(before))
        before.add(data)
        if experts is None:
            assert_equal(model_path, output)
    monkeypatch.undo()
    assert moec.export(model_path, output, form=form).companions == [] and list(tmp_path.iterdir()) == [output]


def test_large_weights_and_a_link_are_refused(model_path, tmp_path, monkeypatch):
    """onnxruntime looks for weights beside the link, and takes none from another folder."""
    link = tmp_path / "link.onnx"
    link.symlink_to("out.onnx")
    moec.export(model_path, link)
    before = (tmp_path / "out.onnx").read_bytes()
    monkeypatch.setattr("moec.exporting.onnx_file._LARGEST_INLINE", 5000)
    with pytest.raises(MoecError, match=r"link.onnx: is a link, and 0 MB of weights go beside the file"):
        moec.export(model_path, link, experts="bf16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.onnx", "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == before


@pytest.mark.parametrize(("dtype", "opens"), [("float", True), ("bfloat16", False)])
def test_a_model_that_the_installed_onnxruntime_does_not_open_gets_a_warning(tmp_path, dtype, opens):
    """It has no addition in bfloat16."""
    model = f"""<ir_version: 10, opset_import: ["" : 21]> m ({dtype}[T,4] x) => ({dtype}[T,4] y) {{ y = Add (x, x) }}"""
    onnx.save(onnx.parser.parse_model(model), tmp_path / "in.onnx")
    remarks = moec.export(tmp_path / "in.onnx", tmp_path / "out.onnx").remarks
    assert [remark.message.split(":")[0] for remark in remarks if remark.pass_name == "export"] == (
        [] if opens else [f"onnxruntime {onnxruntime.__version__}, which is installed, does not open it"]
    )
    assert opens or "Add" in remarks[-1].message


def test_the_same_model_makes_the_same_bytes_and_replaces_only_itself(model_path, tmp_path):
    file, folder = tmp_path / "out.onnx", tmp_path / "out"
    moec.export(model_path, file)
    before = file.read_bytes()
    moec.export(model_path, file)
    assert file.read_bytes() == before
    file.write_bytes(before + b"\0")
    with pytest.raises(MoecError, match="did not write"):
        moec.export(model_path, file)
    for _ in range(2):
        moec.export(model_path, folder, form="onnxruntime")
    (folder / "mine.txt").write_text("")
    with pytest.raises(MoecError, match="changed since moec wrote it"):
        moec.export(model_path, folder, form="onnxruntime")
    assert (folder / "mine.txt").exists()


def test_an_export_is_a_model_again(model_path, tmp_path):
    output = tmp_path / "out.onnx"
    moec.export(model_path, output)
    blocks, _ = find_blocks(output)
    assert [(block["num_experts"], block["top_k"]) for block in blocks] == [(4, 2)]


def test_experts_in_another_format_take_less_space(model_path, tmp_path):
    sizes = []
    for number, experts in enumerate((None, "bf16")):
        output = tmp_path / f"{number}.onnx"
        moec.export(model_path, output, experts=experts)
        sizes.append(output.stat().st_size)
        open_session(output, 1)
    assert sizes[1] < 0.7 * sizes[0]


def test_a_tokenizer_is_refused(model_path, tmp_path):
    with pytest.raises(MoecError, match="an ONNX model holds no tokenizer"):
        moec.export(model_path, tmp_path / "out.onnx", tokenizer=tmp_path)
    assert list(tmp_path.iterdir()) == []
