"""The default level of a compilation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions, default_passes
from moec.runtime.artifact import open_artifact

from ..passes.before_after import model_of

INT8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


def test_gguf_files_are_computed_as_llama_cpp_does(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    assert [default_passes(path, target) for target in ("cpu:avx2", "cuda:sm_80", "hls:zcu102")] == ["O3", "O2", "O2"]
    (tmp_path / "model.onnx").touch()
    assert default_passes(tmp_path / "model.onnx", "cpu") == default_passes(object(), "cpu") == "O2"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, "O2"),
        ({"quant_method": "gptq", "bits": 4}, "O2"),
        ({"quant_method": "awq", "bits": 4}, "O2"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"input_activations": INT8}}}, "O3"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"input_activations": None}}}, "O2"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"input_activations": INT8}, "b": {"input_activations": None}},
            },
            "O2",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"input_activations": {**INT8, "type": "float"}}},
            },
            "O2",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "O2"),
        ({"quant_method": "compressed-tensors", "config_groups": [3]}, "O2"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 3}}, "O2"),
        ({"quant_method": ["gptq"]}, "O2"),
        ("gptq", "O2"),
    ],
)
def test_a_folder_is_computed_as_its_quantiser_says(settings: Any, expected: str, tmp_path: Path) -> None:
    config = {"model_type": "llama", **({} if settings is None else {"quantization_config": settings})}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert default_passes(tmp_path, "cpu") == expected


@pytest.mark.parametrize("passes", ["O3", "O2,round-activations{format=int8}"])
def test_projects_for_an_fpga_have_an_arithmetic_of_their_own(passes: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UnsupportedError, match=r"'hls:zcu102' computes in integers at every level.*compile with -O2"):
        compiler.write(tmp_path / "model.onnx", tmp_path / "a.moec", CompileOptions(target="hls:zcu102", passes=passes))
    with pytest.raises(MoecError, match=r"model\.onnx: "):
        compiler.write(tmp_path / "model.onnx", tmp_path / "a.moec", CompileOptions(target="hls:zcu102", passes="O2"))


@pytest.mark.parametrize(
    ("target", "own", "severity"),
    [
        ("cuda:sm_80", False, "warning"),
        pytest.param("cuda:sm_80", True, "note", marks=pytest.mark.nightly),
        ("cpu", False, None),
    ],
)
def test_rounding_where_floats_are_multiplied_is_said(
    target: str, own: bool, severity: str | None, tmp_path: Path
) -> None:
    """``own``: the model itself rounds."""
    arithmetic = 'arithmetic = "int8"' if own else 'arithmetic = "float32"'
    text = """(float[T,64] x) => (float[T,8] y) <int8[8,64] w, float[8,2] scale> {
        decoded = DequantizeLinear <axis = 1, block_size = 32> (w, scale)
        y = moec.Linear <ARITHMETIC> (x, decoded) }"""
    path = tmp_path / "model.onnx"
    ir.save(model_of(text.replace("ARITHMETIC", arithmetic)), path)
    compiler.write(path, tmp_path / "a.moec", CompileOptions(target=target, passes="O2" if own else "O3"))
    remarks = open_artifact(tmp_path / "a.moec").manifest.remarks
    assert [remark["severity"] for remark in remarks if "no faster" in remark["message"]] == (
        [severity] if severity else []
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda:sm_80"}, "drafts run on processors, not on target 'cuda:sm_80'; compile without drafts"),
        (
            {"resident": "1GiB"},
            "an MTP layer runs with all weights in memory; compile without resident, or",
        ),
        ({"ranks": 2}, "compile without ranks, or without drafts"),
        ({"form": "c"}, "a C library drafts nothing; compile without form, or without drafts"),
        ({"cache": False}, "drafts need the cache of the model"),
    ],
)
def test_drafts_are_for_one_process_on_a_processor(options, message):
    with pytest.raises(UnsupportedError, match=message):
        CompileOptions(drafts="mtp", **options).check_further_programs()
    CompileOptions(**options).check_further_programs()


def test_drafts_of_another_kind_are_refused():
    with pytest.raises(MoecError, match="drafts is 'ngram' of type str; expected one of 'mtp'"):
        CompileOptions(drafts="ngram")
