"""Conversions of a checkpoint's tensors equal transformers' operations on their numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, Conversion, LazyArray
from tests.frontend.huggingface.models import torch


class Doubled:
    """An operation that computes, and returns floats of another type."""

    def convert(self, tensors: dict[str, list[Any]], **_: Any) -> dict[str, Any]:
        (tensor,) = tensors["w"]
        return {"w": 2 * tensor.to(torch.float32)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, ml_dtypes.float8_e4m3fn])
def test_operations_see_numbers_and_other_types_move(dtype: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    kind = ir.DataType.from_numpy(array.dtype)
    sources = {"w": [CheckpointWeight("file", {"data": LazyArray(kind, array.shape, lambda: array)})]}
    moved = array.dtype == ml_dtypes.float8_e4m3fn
    operation = SimpleNamespace(convert=lambda tensors, **_: {"w": tensors["w"][0]}) if moved else Doubled()
    converter = SimpleNamespace(operations=[operation], source_patterns=["w"], target_patterns=["w"])
    conversion = Conversion(converter, "w", sources, SimpleNamespace(config=None))  # type: ignore[arg-type]
    actual = conversion.weights()["w"].data
    assert actual.dtype == kind
    np.testing.assert_array_equal(actual.read(), array if moved else 2 * array)
