"""NVFP4: floats of 4 bits (OCP e2m1), with a scale e4m3 for every 16 and one float32 for the matrix.

Tensors of a product [out,in]: numbers uint8 [out, in/2], the lower half first; scales [out, in/16]; the float of the
matrix [] or [1]. A weight is number * scale * float where NVIDIA's Model Optimizer wrote it (``quant_method`` modelopt:
``weight``, ``weight_scale``, ``weight_scale_2``), and number * scale / float where compressed-tensors did
(``nvfp4-pack-quantized``: ``weight_packed``, ``weight_scale``, ``weight_global_scale``). moec keeps a factor for every
output, since outputs of several matrices may become those of one: the float, or 1 / float. Activations stay floats.
Sources: ``NVFP4QTensor`` of modelopt.torch.quantization, ``NVFP4PackedCompressor`` of compressed-tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, LazyArray
from moec.frontend.huggingface.quantised import fp8, packing
from moec.frontend.huggingface.quantised.packing import Array, Parts
from moec.ir.weights.encode import Table
from moec.ir.weights.format import NV_GROUP, WeightFormat

_ACTIVATIONS = (".input_scale", ".k_scale", ".v_scale")


def decode(tensors: Mapping[str, FileTensor], settings: dict[str, Any], where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint of Model Optimizer by their names as floats, in NVFP4 or float8. Raises as
    :func:`decode_names`."""
    algorithm = settings.get("quant_algo")
    if algorithm not in ("NVFP4", "FP8"):
        raise UnsupportedError(f"{where}: the algorithm of modelopt is {str(algorithm)[:60]!r}; expected NVFP4 or FP8")
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(_ACTIVATIONS)}
    if algorithm == "FP8":
        read = functools.partial(fp8.weight_of, end=".weight_scale", block=None)
        return fp8.decoded_where_scaled(weights, ".weight_scale", read)
    read = functools.partial(weight_of, numbers=".weight", factor=".weight_scale_2")
    return fp8.decoded_where_scaled(weights, ".weight_scale", read, (".weight_scale_2",))


def decode_packed(tensors: Mapping[str, FileTensor]) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint of compressed-tensors by their names as floats."""
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(".input_global_scale")}
    read = functools.partial(weight_of, numbers=".weight_packed", divisor=".weight_global_scale")
    return packing.decoded(weights, ".weight_packed", (".weight_scale", ".weight_global_scale"), read)


def weight_of(
    where: str, parts: Parts, numbers: str, factor: str | None = None, divisor: str | None = None
) -> CheckpointWeight:
    """Combine the parts of a weight. ``numbers``: end of the name of the packed numbers. ``factor`` or ``divisor``: end
    of the name of the matrix's float, by its use."""
    packed = packing.part(parts, numbers, (ir.DataType.UINT8,), 2)
    scales = packing.part(parts, ".weight_scale", (ir.DataType.FLOAT8E4M3FN,), 2)
    end = factor or divisor
    assert end is not None
    rank = len(parts[end].shape) if end in parts else 0
    whole = packing.part(parts, end, (ir.DataType.FLOAT,), min(rank, 1))
    out, size = packed.shape[0], 2 * packed.shape[1]
    packing.check_shape(scales, (out, -(-size // NV_GROUP)))
    packing.check_shape(whole, (1,) * min(rank, 1))

    def factors() -> Array:
        number = whole.numpy().reshape(())
        if not np.isfinite(number) or (divisor is not None and number == 0):
            raise MoecError(f"{whole.where}: is {number}; expected a finite number other than 0")
        return np.full((out, 1), number if divisor is None else 1 / number, np.float32)

    def codes() -> Array:
        return packing.unpacked(packed.numpy(), 4).view(ml_dtypes.float4_e2m1fn)

    data = LazyArray(ir.DataType.FLOAT4E2M1, (out, size), codes)
    factor_table = LazyArray(ir.DataType.FLOAT, (out, 1), factors)
    tables: dict[Table, LazyArray] = {"data": data, "scale_code": LazyArray.of(scales), "scale_factor": factor_table}
    return CheckpointWeight(where, tables, WeightFormat("nvfp4", NV_GROUP))
