"""MXFP4 as in gpt-oss.

``*_blocks`` is uint8 [experts, out, groups, 16] with two float4 e2m1 in each byte, the lower half first. ``*_scales``
is uint8 [experts, out, groups] and holds exponents of two plus 127. The parameter that they stand for is [experts, in,
out]. Source: ``_convert_moe_packed_tensors`` of transformers/integrations/mxfp4.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, LazyArray
from moec.frontend.huggingface.quantised import packing
from moec.frontend.huggingface.quantised.packing import Array, Parts
from moec.ir.weights.format import MX_GROUP, WeightFormat

_BYTES = (ir.DataType.UINT8,)


def decode(tensors: Mapping[str, FileTensor], _settings: dict[str, Any], _where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint by their names as floats. Raises as :func:`decode_names`."""
    return packing.decoded(tensors, "_blocks", ("_scales",), _weight, name="")


def _weight(where: str, parts: Parts) -> CheckpointWeight:
    blocks = packing.part(parts, "_blocks", _BYTES, 4)
    scales = packing.part(parts, "_scales", _BYTES, 3)
    E, out, groups, _ = blocks.shape
    packing.check_shape(blocks, (E, out, groups, MX_GROUP // 2))
    packing.check_shape(scales, (E, out, groups))

    def numbers(stored: Array) -> Array:
        pairs = packing.unpacked(stored, 4)
        return pairs.reshape(*stored.shape[:-2], -1).view(ml_dtypes.float4_e2m1fn)

    def of_expert(expert: int) -> Array:
        return numbers(blocks.numpy()[expert])

    data = LazyArray(ir.DataType.FLOAT4E2M1, (E, out, groups * MX_GROUP), lambda: numbers(blocks.numpy()), of_expert)
    exponents = LazyArray(
        ir.DataType.FLOAT8E8M0, scales.shape, lambda: scales.numpy().view(np.dtype(ml_dtypes.float8_e8m0fnu))
    )
    return CheckpointWeight(where, {"data": data, "scale": exponents}, WeightFormat("mxfp4", MX_GROUP)).transposed()
