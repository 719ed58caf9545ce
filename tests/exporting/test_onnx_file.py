"""ONNX files that moec writes, as onnx reads them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.common.seals import foreign_file
from moec.exporting import onnx_file
from moec.ir.weights.stacks import ExpertStack

from ..passes.before_after import model_of


def model(dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """A product with weights that are made one expert at a time, and small constants."""
    built = model_of("(float[T,1,8] x) => (float[3,T,9] y) <float[3,8,90] w, int64[2] s> { y = MatMul (x, w) }")
    stack = ExpertStack("w", dtype, (3, 8, 90), lambda expert: np.full((8, 90), expert + 1, dtype.numpy()))
    built.graph.initializers["w"].const_value = stack
    built.graph.initializers["w"].type = ir.TensorType(dtype)
    return built


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.INT4, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("largest", [None, 0, 1 << 20])
def test_weights_are_read_back(tmp_path, monkeypatch, largest, dtype):
    """``largest``: bytes of weights that a file may have in itself; None for a file of a folder."""
    path = tmp_path / "model.onnx"
    if largest is None:
        onnx_file.write_file_and_data(model(dtype), path)
    else:
        monkeypatch.setattr(onnx_file, "_LARGEST_INLINE", largest)
        onnx_file.write_file(model(dtype), path, path)
    assert len(list(tmp_path.glob("model.onnx*.data"))) == (not largest)
    (weight,) = onnx.load(path).graph.initializer
    numbers = onnx.numpy_helper.to_array(weight).astype(np.float32)
    np.testing.assert_array_equal(numbers, np.broadcast_to(np.arange(1, 4)[:, None, None], (3, 8, 90)))
    assert foreign_file(path) is None
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MulMat"))
    assert foreign_file(path) == "is a file that was changed since moec wrote it"


def test_an_operator_of_moec_is_refused_by_name():
    left = model_of("(float[T,2] x) => (float[T,2] y) { y = moec.RoundRows (x) }")
    with pytest.raises(
        MoecError, match=r"node y: moec\.RoundRows cannot be written in ONNX; compile the model instead"
    ):
        onnx_file.finish(left)


def test_equal_names_of_nodes_become_different():
    named = model_of("(float[T,2] x) => (float[T,2] y) { a = Relu (x) b = Exp (a) y = Neg (b) }")
    for node in named.graph:
        node.name = "node"
    onnx_file.finish(named)
    assert [node.name for node in named.graph] == ["node", "node_2", "node_3"]
