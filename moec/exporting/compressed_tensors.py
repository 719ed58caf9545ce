"""Weights of whole numbers as the library compressed-tensors packs them, and the entry of config.json that says so.

``pack-quantized``: NAME.weight_packed [out, words] (int32) holds numbers from 0 to 2^bits - 1, the first in the lowest
bits, with 2^(bits-1) for zero; NAME.weight_scale [out, groups] holds their scales and NAME.weight_shape the sizes.
Zero points have a tensor of their own, which transformers 5.24 does not read for experts, so that nothing is written
with them. Source: ``compressors/pack_quantized/base.py`` of compressed-tensors.
"""

from __future__ import annotations

import re
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
_DIGITS = re.compile(r"(?<=\.)\d+(?=\\\.)")
"""A number between the dots of an escaped name: that of a layer or an expert."""
_BITS = {name: bits for bits, (name, *_) in WHOLE.items()}


def packed_tensors(
    name: str, form: WeightFormat, scale: ir.DataType, shape: tuple[int, ...], read: Callable[[Table], Array]
) -> dict[str, NewTensor]:
    """The tensors of a weight [out,in]. ``scale``: the type of its scales. ``read``: function that makes a table [out,
    ...] of it. Raises UnsupportedError for a format that is none of 4 and 8 bits."""
    plain = WeightFormat(form.name, form.group) == form
    if form.name not in _BITS or not plain or not name.endswith(_END) or len(shape) != 2:
        raise UnsupportedError(
            f"tensor {name!r}: would be {form}; transformers reads int4 and int8 without zero points "
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


def quantization_config(
    experts: Mapping[str, WeightFormat], dense: Mapping[str, WeightFormat], floats: Sequence[str], where: str
) -> dict[str, Any]:
    """The entry ``quantization_config``. ``experts``, ``dense``: formats of weights of experts and of dense products,
    by name; ``floats``: the other matrices, which readers have to leave alone.

    transformers takes the group of experts to be the one with a pattern that mentions them, for all layers
    (``get_experts_scheme`` in ``integrations/compressed_tensors.py``). Raises UnsupportedError for several formats of
    experts.
    """
    of_experts, by_format = set(experts.values()), _by_format(dense)
    if len(of_experts) > 1:
        raise UnsupportedError(
            f"{where}: its experts would have the formats {', '.join(sorted(map(str, of_experts)))}; transformers "
            "reads one for all experts of a folder: give all the same; a GGUF file has one for each tensor"
        )
    if len(of_experts | by_format.keys()) == 1:
        groups = [_group(form, ["Linear"]) for form in of_experts | by_format.keys()]
    else:
        patterns = sorted({_DIGITS.sub(r"\\d+", re.escape(_module(name))) for name in experts})
        groups = [_group(form, [f"re:{pattern}$" for pattern in patterns]) for form in of_experts]
        groups += [_group(form, names) for form, names in by_format.items()]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [_module(name) for name in floats],
        "kv_cache_scheme": None,
    }


def _module(name: str) -> str:
    return name.removesuffix(_END)


def _by_format(forms: Mapping[str, WeightFormat]) -> dict[WeightFormat, list[str]]:
    by_format: dict[WeightFormat, list[str]] = {}
    for name, form in forms.items():
        by_format.setdefault(form, []).append(_module(name))
    return by_format


def _group(form: WeightFormat, targets: Sequence[str]) -> dict[str, Any]:
    return {
        "targets": list(targets),
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
