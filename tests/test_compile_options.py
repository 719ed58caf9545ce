"""Which level a model is compiled at where none is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moec.compile_options import default_passes

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
