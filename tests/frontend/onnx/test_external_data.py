"""Weights stay in their files, and a model's declarations of its tensors are checked before one is read."""

from __future__ import annotations

import mmap
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moec.common.errors import MoecError
from moec.frontend.onnx.importer import files_of, import_model
from moec.ir import interpreter
from moec.ir.opsets import OPSET

from ..small_models import X, model_of, refuse


def external(folder, *, location="weights.bin", offset="0", length="24", size=24, shape=(2, 3), width=3):
    """Make a model that adds an external tensor of 24 bytes. A data file is written when ``location`` is a plain
    name."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    if size is not None:
        (folder / "weights.bin").write_bytes(X.tobytes()[:size])
    path = folder / "model.onnx"
    add = helper.make_node("Add", ["x", "w"], ["y"])
    path.write_bytes(model_of([add], initializers=[tensor], inputs=[("x", [None, width])]).SerializeToString())
    return path


def map_behind(tensor):
    """Find the memory map that contains a tensor's array. Returns None where there is none."""
    array = tensor.numpy()
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array


def test_weights_stay_in_their_file(tmp_path):
    rows = 1 << 30  # 4 GiB, as a file without blocks: reading it would be noticed
    path = external(tmp_path, length=str(rows * 4), size=None, shape=(rows,), width=rows)
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(rows * 4)
    weight = import_model(path).graph.initializers["w"].const_value
    assert map_behind(weight) is not None


def test_the_files_of_a_model_are_its_own_and_its_data(tmp_path):
    path = external(tmp_path)
    assert files_of(path) == [path, tmp_path / "weights.bin"]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(MoecError, match=r"'weights.bin' is missing"):
        files_of(path)


def test_weights_of_one_file_share_one_map(tmp_path):
    tensors = []
    for name, offset in (("v", "0"), ("w", "12")):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "weights.bin"), ("offset", offset), ("length", "12")):
            tensor.external_data.add(key=key, value=entry)
        tensors.append(tensor)
    X.tofile(tmp_path / "weights.bin")
    nodes = [helper.make_node("Add", ["x", "v"], ["a"]), helper.make_node("Add", ["a", "w"], ["y"])]
    model = model_of(nodes, initializers=tensors, opset=OPSET)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    weights = import_model(tmp_path / "model.onnx").graph.initializers
    v, w = (weights[name].const_value for name in ("v", "w"))
    np.testing.assert_array_equal(np.stack([v.numpy(), w.numpy()]), X)
    assert map_behind(v) is map_behind(w) is not None


def test_a_small_external_weight_has_its_values(tmp_path):
    model = import_model(external(tmp_path))
    np.testing.assert_array_equal(interpreter.run(model, {"x": X})["y"], 2 * X)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": None}, "is missing in"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "sub/../../weights.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"size": 20}, "lies at bytes 0 to 24 of 'weights.bin', but that file has 20"),
        ({"offset": "4"}, "lies at bytes 4 to 28"),
        ({"offset": "-4"}, "the offset of its external data is '-4'"),
        ({"length": "many"}, "the length of its external data is 'many'"),
        ({"length": "20"}, "has 20 bytes in 'weights.bin'; expected 24"),
        ({"shape": (2, 4)}, r"expected 32 for its shape \[2, 4\]"),
        ({"shape": (2, -3)}, "has the negative size -3"),
    ],
)
def test_external_data_is_checked_before_it_is_read(tmp_path, options, message):
    refuse(external(tmp_path, **options), f"tensor 'w'.*{message}")


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(24))
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(secret)
    refuse(path, "tensor 'w'.*outside the model's folder")
    (folder / "weights.bin").unlink()
    os.link(secret, folder / "weights.bin")
    refuse(path, "tensor 'w'.*hard link")


def test_a_model_in_memory_has_no_folder(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    refuse(proto, "a model given in memory has no folder")


def test_tensors_whose_data_and_shape_disagree():
    weight = numpy_helper.from_array(X, "w")
    weight.dims[0] = 3
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    refuse(model_of(nodes, initializers=[weight]), "tensor 'w' holds 24 bytes; expected 36")
    typed = helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2])
    typed.dims[0] = 4
    refuse(model_of(nodes, initializers=[typed]), "tensor 'w' holds 2 values; expected 4")
    typed.data_type = 999
    refuse(model_of(nodes, initializers=[typed]), "element type 999")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, bool])
def test_weights_inside_the_file_are_copied_once(dtype):
    """One expert is read without the others."""
    numbers = np.arange(24).reshape(2, 3, 4).astype(dtype)
    constants = [numpy_helper.from_array(numbers, "w"), numpy_helper.from_array(numbers[:0], "empty")]
    model = import_model(model_of([helper.make_node("Add", ["x", "x"], ["y"])], initializers=constants))
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), numbers)
    assert np.shares_memory(tensor.numpy(), tensor.numpy())
