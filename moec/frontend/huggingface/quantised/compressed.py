"""compressed-tensors, as llm-compressor writes it.

Tensors of a product [out,in]:

- ``pack-quantized``: ``weight_packed`` int32 [out, in*bits/32], numbers one after the other, lowest bits first, plus
  2^(bits-1); ``weight_shape``; ``weight_scale`` [out,groups]; maybe ``weight_zero_point`` int32 [out*bits/32, groups],
  packed along the outputs in the same way; maybe ``weight_g_idx`` [in], the group of each input.
- ``int-quantized``: ``weight`` int8, ``weight_scale`` [out,1] or for all, maybe ``weight_zero_point`` int8 like it.
- ``float-quantized``: ``weight`` float8 e4m3, ``weight_scale`` per output, for all, or per block.
- ``nvfp4-pack-quantized``: see :mod:`moec.frontend.huggingface.quantised.nvfp4`.

A weight is scale * (number - zero point). ``input_activations`` of the settings say how activations are rounded. Only
one thing is taken from them: whether they are integers of 8 bits, which selects the level that models are compiled at.
Their groups and static scales are ignored. Source: compressors/{pack_quantized,naive_quantized} and
quantization/lifecycle/forward.py of that package.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, LazyArray
from moec.frontend.huggingface.quantised import fp8, nvfp4, packing
from moec.frontend.huggingface.quantised.packing import Parts

_FORMATS = ("pack-quantized", "nvfp4-pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_PACKED, _SCALE, _ZERO, _SHAPE, _INDEX = (
    f".weight_{end}" for end in ("packed", "scale", "zero_point", "shape", "g_idx")
)


def decode(tensors: Mapping[str, FileTensor], settings: dict[str, Any], where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint by their names as floats. Raises as :func:`decode_names`."""
    form = settings.get("format")
    if form not in _FORMATS:
        raise UnsupportedError(
            f"{where}: compressed-tensors in the format {str(form)[:60]!r}; expected {', '.join(_FORMATS)}"
        )
    if form == "nvfp4-pack-quantized":
        return nvfp4.decode_packed(tensors)
    if form == "pack-quantized":
        return packing.decoded(tensors, _PACKED, (_SCALE, _ZERO, _SHAPE, _INDEX), _packed)
    read = functools.partial(_plain, block=_block(settings, where))
    return fp8.decoded_where_scaled(tensors, _SCALE, read, (_ZERO,))


def rounds_activations(settings: dict[str, Any]) -> bool:
    """Whether activations are integers of 8 bits wherever weights are rounded (W8A8, W4A8)."""
    groups = settings.get("config_groups")
    entries = list(groups.values()) if isinstance(groups, dict) else []
    inputs = [entry.get("input_activations") if isinstance(entry, dict) else None for entry in entries]
    return bool(inputs) and all(
        isinstance(scheme, dict) and (scheme.get("type", "int"), scheme.get("num_bits")) == ("int", 8)
        for scheme in inputs
    )


def _block(settings: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Read the block of weights that share a scale. Returns None where the settings name no block, or several."""
    groups = settings.get("config_groups")
    entries = list(groups.values()) if isinstance(groups, dict) else []
    weights = [entry.get("weights") for entry in entries if isinstance(entry, dict)]
    blocks = {
        str(scheme.get("block_structure")): scheme.get("block_structure")
        for scheme in weights
        if isinstance(scheme, dict)
    }
    if len(blocks) != 1:
        return None
    return packing.block_of(next(iter(blocks.values())), "block_structure", where)


def _packed(where: str, parts: Parts) -> CheckpointWeight:
    words = packing.part(parts, _PACKED, packing.INT32, 2)
    scales = packing.part(parts, _SCALE, packing.FLOATS, 2)
    sizes = packing.part(parts, _SHAPE, (ir.DataType.INT64, ir.DataType.INT32), 1).numpy().tolist()
    out, size = sizes if len(sizes) == 2 else (-1, -1)
    bits = next((bits for bits in packing.WHOLE if words.shape == (out, -(-size * bits // 32))), None)
    if bits is None:
        raise UnsupportedError(
            f"{where}: is {list(words.shape)} for a weight_shape of {sizes}; expected a matrix of 4 or 8 bits"
        )
    zeros = None
    if _ZERO in parts:
        stored = packing.part(parts, _ZERO, packing.INT32, 2)
        packing.check_shape(stored, (-(-out * bits // 32), scales.shape[1]))
        zeros = functools.partial(_zeros, stored, bits, out)
    weight = packing.whole_numbers(
        where,
        bits,
        (out, size),
        lambda: packing.unpacked(words.numpy(), bits)[:, :size],
        packing.scales_of(scales),
        zeros,
    )
    if _INDEX not in parts:
        return weight
    return packing.in_groups(weight, packing.part(parts, _INDEX, (ir.DataType.INT32, ir.DataType.INT64), 1))


def _zeros(stored: FileTensor, bits: int, out: int) -> packing.Array:
    return packing.unpacked(stored.numpy().T, bits)[:, :out].T


def _plain(where: str, parts: Parts, block: tuple[int, int] | None) -> CheckpointWeight:
    if parts[".weight"].dtype != ir.DataType.INT8:
        if _ZERO in parts:
            raise UnsupportedError(
                f"{parts[_ZERO].where}: its zero points are float8; expected weights without zero points"
            )
        return fp8.weight_of(where, parts, _SCALE, block)
    numbers = packing.part(parts, ".weight", (ir.DataType.INT8,), 2)
    out = numbers.shape[0]
    scale = _per_output(parts[_SCALE], out, packing.FLOATS)
    zeros = None
    if _ZERO in parts:
        zero = _per_output(parts[_ZERO], out, (ir.DataType.INT8,))
        zeros = functools.partial(_unsigned, zero)
    data = LazyArray.of(numbers)
    shape = (out, numbers.shape[1])
    return packing.whole_numbers(where, 8, shape, functools.partial(_unsigned, data), scale, zeros)


def _unsigned(array: LazyArray) -> packing.Array:
    return (array.read().astype(np.int16) + 128).astype(np.uint8)


def _per_output(tensor: FileTensor, out: int, dtypes: tuple[ir.DataType, ...]) -> LazyArray:
    """Read numbers [out,groups]; the tensor may hold one number for all."""
    if tensor.dtype not in dtypes:
        raise UnsupportedError(f"{tensor.where}: is {tensor.dtype.name.lower()}, a type that is not supported here")
    if len(tensor.shape) == 2 and tensor.shape[0] == out:
        return packing.scales_of(tensor)
    if tensor.shape not in ((), (1,), (1, 1), (out,)):
        raise MoecError(f"{tensor.where}: is {list(tensor.shape)}; expected one for each of {out} outputs, or for all")
    array = packing.scales_of(tensor)
    return array.mapped(lambda scale: np.resize(scale, (out, 1)), array.dtype, (out, 1))
