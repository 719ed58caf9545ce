"""Weights of whole numbers as the library compressed-tensors packs them, and the entry of config.json that says so.

``pack-quantized``: NAME.weight_packed [out, words] (int32) holds numbers from 0 to 2^bits - 1, the first in the lowest
bits, with 2^(bits-1) for zero; NAME.weight_scale [out, groups] holds their scales and NAME.weight_shape the sizes.
Zero points have a tensor of their own, which transformers 5.24 does not read for experts, so that nothing is written
with them. Source: ``compressors/pack_quantized/base.py`` of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import NewTensor
from moec.frontend.huggingface.quantised.packing import WHOLE, packed
from moec.ir.weights.encode import Table, group_count
from moec.ir.weights.format import WeightFormat

Array = np.ndarray[Any, Any]
_END = ".weight"
_BITS = {name: bits for bits, (name, *_) in WHOLE.items()}


def packed_tensors(
    name: str, form: WeightFormat, scale: ir.DataType, shape: tuple[int, ...], read: Callable[[Table], Array]
) -> dict[str, NewTensor]:
    """The tensors of a weight [out,in]. ``scale``: the type of its scales. ``read``: function that makes a table [out,
    ...] of it. Raises UnsupportedError for a format that is none of 4 and 8 bits."""
    plain = WeightFormat(form.name, form.group) == form
    if form.name not in _BITS or not plain or not name.endswith(_END) or len(shape) != 2:
        raise UnsupportedError(
            f"tensor {name!r}: would be {form}; transformers reads experts of int4 and int8 without zero points "
            "(compressed-tensors), and floats"
        )
    bits, (out, size) = _BITS[form.name], shape

    def words() -> Array:
        return packed((read("data").astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8), bits)

    return {
        f"{name}_packed": _one(ir.DataType.INT32, (out, -(-size * bits // 32)), words),
        f"{name}_scale": _one(scale, (out, group_count(size, form)), lambda: read("scale")),
        f"{name}_shape": _one(ir.DataType.INT64, (2,), lambda: np.array(shape, np.int64)),
    }


def _one(dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], Array]) -> NewTensor:
    return NewTensor(dtype, shape, lambda: (make(),))


def quantization_config(forms: Mapping[str, WeightFormat], floats: Sequence[str]) -> dict[str, Any]:
    """The entry ``quantization_config``. ``forms``: formats by the names of weights; ``floats``: the other matrices,
    which readers have to leave alone."""
    by_format: dict[WeightFormat, list[str]] = {}
    for name, form in forms.items():
        by_format.setdefault(form, []).append(name.removesuffix(_END))
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if len(by_format) == 1 else names,
            "weights": {
                "num_bits": _BITS[form.name],
                "type": "int",
                "symmetric": True,
                "strategy": "group" if form.group else "channel",
                "group_size": form.group or None,
                "dynamic": False,
                "actorder": None,
            },
            "input_activations": None,
            "output_activations": None,
        }
        for number, (form, names) in enumerate(by_format.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name.removesuffix(_END) for name in floats],
        "kv_cache_scheme": None,
    }
