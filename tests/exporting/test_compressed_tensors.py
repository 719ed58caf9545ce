"""Weights that are packed for compressed-tensors are read back as they were, and the configuration says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.exporting.compressed_tensors import packed_tensors, quantization_config
from moec.frontend.huggingface.checkpoint.safetensors import read_file, read_metadata, write_file
from moec.frontend.huggingface.quantised import decode_names
from moec.ir.weights.encode import encode
from moec.ir.weights.format import WeightFormat

FORMS = [WeightFormat("int4", 32), WeightFormat("int4"), WeightFormat("int8")]
NAME = "experts.0.up.weight"


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("outputs", [5, 8])
def test_a_weight_comes_back(form: WeightFormat, outputs: int, tmp_path: Path) -> None:
    encoded = encode(np.random.default_rng(0).normal(size=(outputs, 64)).astype(np.float32), form)
    assert encoded.scale is not None
    scale = ir.DataType.from_numpy(encoded.scale.dtype)
    tensors = packed_tensors(NAME, form, scale, (outputs, 64), encoded.read)
    path = tmp_path / "a.safetensors"
    write_file(path, tensors, {"format": "pt"})
    assert read_metadata(path) == {"format": "pt"}
    config = {"quantization_config": quantization_config({NAME: form}, {}, ["lm_head.weight"], "folder")}
    weight = decode_names(read_file(path), config, "folder")[NAME]
    assert weight.form == form
    for table, array in weight.tables.items():
        expected = encoded.read(table)
        assert expected is not None
        np.testing.assert_array_equal(array.read(), expected)


@pytest.mark.parametrize(
    "form", [WeightFormat("int3", 32), WeightFormat("fp8"), WeightFormat("int4", 32, True)], ids=str
)
def test_other_formats_are_refused(form: WeightFormat) -> None:
    with pytest.raises(UnsupportedError, match="reads int4 and int8 without zero points"):
        packed_tensors(NAME, form, ir.DataType.FLOAT16, (4, 64), lambda _: np.zeros(0))


def test_one_format_is_that_of_all_linears_but_those_that_are_named() -> None:
    config = quantization_config({NAME: FORMS[0]}, {"b.weight": FORMS[0]}, ["lm_head.weight"], "folder")
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"] and config["ignore"] == ["lm_head"]
    assert (group["weights"]["num_bits"], group["weights"]["group_size"]) == (4, 32)
    assert group["weights"]["symmetric"] and group["weights"]["strategy"] == "group"


def test_of_several_formats_experts_have_a_pattern_and_others_names() -> None:
    experts = [f"model.layers.{layer}.experts.{expert}.up.weight" for layer in (3, 4) for expert in range(2)]
    config = quantization_config(dict.fromkeys(experts, FORMS[0]), {"a.1.weight": FORMS[2]}, [], "folder")
    groups = list(config["config_groups"].values())
    assert [group["targets"] for group in groups] == [[r"re:model\.layers\.\d+\.experts\.\d+\.up$"], ["a.1"]]
    assert [group["weights"]["strategy"] for group in groups] == ["group", "channel"]
    assert [group["weights"]["num_bits"] for group in groups] == [4, 8]
    names = quantization_config({}, {"a.weight": FORMS[2], "b.weight": FORMS[1]}, [], "folder")["config_groups"]
    assert [group["targets"] for group in names.values()] == [["a"], ["b"]]


def test_experts_have_one_format() -> None:
    with pytest.raises(UnsupportedError, match="have the formats int4/32, int8; transformers reads one for all"):
        quantization_config({NAME: FORMS[0], "b.weight": FORMS[2]}, {}, [], "folder")
