"""Floats of 8 bits (OCP e4m3) with scales: for each block of outputs and inputs (128 x 128 in DeepSeek's checkpoints),
for each output, or for the whole matrix. A weight is number * scale.

``weight_scale_inv`` is a factor, too, in spite of its name. Sources: ``_dequantize_fp8_weight`` of
transformers/integrations/finegrained_fp8.py, ``NaiveQuantizationCompressor`` of compressed-tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, LazyArray
from moec.frontend.huggingface.quantised import packing
from moec.frontend.huggingface.quantised.packing import Array, Parts
from moec.ir.weights.format import WeightFormat

_FP8 = (ir.DataType.FLOAT8E4M3FN,)
_SCALES = (*packing.FLOATS, ir.DataType.FLOAT8E8M0)


def decode(tensors: Mapping[str, FileTensor], settings: dict[str, Any], where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint by their names as floats. Raises as :func:`decode_names`."""
    block = packing.block_of(settings.get("weight_block_size"), "weight_block_size", where)
    read = functools.partial(weight_of, end=".weight_scale_inv", block=block)
    return decoded_where_scaled(tensors, ".weight_scale_inv", read)


def decoded_where_scaled(
    tensors: Mapping[str, FileTensor], end: str, read: packing.Decoder, others: tuple[str, ...] = ()
) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint; those with a tensor ``end`` next to ``.weight`` are quantised."""
    scaled = {
        name: tensor
        for name, tensor in tensors.items()
        for other in (".weight", end, *others)
        if name.endswith(other) and name.removesuffix(other) + end in tensors
    }
    plain = {name: CheckpointWeight.of(tensor) for name, tensor in tensors.items() if name not in scaled}
    return plain | packing.decoded(scaled, ".weight", (end, *others), read)


def weight_of(where: str, parts: Parts, end: str, block: tuple[int, int] | None) -> CheckpointWeight:
    """Combine numbers and scales to a weight. ``block``: outputs and inputs that share a scale, None where not
    declared."""
    numbers = packing.part(parts, ".weight", _FP8, 2)
    scales = parts[end]
    if scales.dtype not in _SCALES:
        raise UnsupportedError(f"{scales.where}: is {scales.dtype.name.lower()}; expected floats")
    out, size = numbers.shape
    group = 0
    if block is not None and len(scales.shape) == 2 and scales.shape != (out, 1):
        rows, group = block
        packing.check_shape(scales, (-(-out // rows), -(-size // group)))
        group = 0 if group >= size else group
        expand = functools.partial(_by_rows, rows=rows, out=out)
    elif scales.shape in ((out, 1), (out,)):
        expand = functools.partial(_reshaped, out=out)
    elif scales.shape in ((), (1,), (1, 1)):
        expand = functools.partial(_repeated, out=out)
    else:
        raise UnsupportedError(
            f"{scales.where}: is {list(scales.shape)} for {list(numbers.shape)}; expected a scale per block, per "
            "output or for all"
        )
    shape = (out, -(-size // group) if group else 1)
    scale = LazyArray(ir.DataType.FLOAT, shape, lambda: expand(scales.numpy().astype(np.float32)))
    data = LazyArray.of(numbers)
    return CheckpointWeight(where, {"data": data, "scale": scale}, WeightFormat("fp8", group))


def _by_rows(scales: Array, rows: int, out: int) -> Array:
    return np.repeat(scales, rows, axis=0)[:out]


def _reshaped(scales: Array, out: int) -> Array:
    return scales.reshape(out, 1)


def _repeated(scales: Array, out: int) -> Array:
    return np.full((out, 1), scales.reshape(-1)[0])
