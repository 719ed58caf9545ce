"""GPTQ, as AutoGPTQ and GPTQModel write it.

Tensors of a product [out,in]: ``qweight`` int32 [in*bits/32, out], numbers one after the other along the inputs;
``scales`` [groups, out]; ``qzeros`` int32 [groups, out*bits/32], one after the other along the outputs; ``g_idx`` [in],
the group of each input. A weight is scale[g] * (number - zero[g]). Format 1 (``checkpoint_format`` gptq) stores zero
points less one, so that zero = (stored + 1) mod 2^bits; format 2 stores them as they are. Source:
``QuantLinear.forward`` of auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.frontend.huggingface.quantised import packing
from moec.frontend.huggingface.quantised.packing import Array, Parts

_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""Number to add to stored zero points, by format."""


def decode(tensors: Mapping[str, FileTensor], settings: dict[str, Any], where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint by their names as floats. Raises as :func:`decode_names`."""
    bits, form = settings.get("bits"), settings.get("checkpoint_format", "gptq")
    if type(bits) is not int or bits not in packing.WHOLE or not isinstance(form, str) or form not in _FORMATS:
        raise UnsupportedError(
            f"{where}: GPTQ of {str(bits)[:20]} bits in the format {str(form)[:40]!r}; expected 4 or 8 bits in gptq "
            "and gptq_v2"
        )
    zeros = [tensor for name, tensor in tensors.items() if name.endswith(".qzeros") and tensor.dtype in packing.INT32]
    symmetric = all((_zeros(tensor, bits, _FORMATS[form]) == 2 ** (bits - 1)).all() for tensor in zeros)
    decode_one = functools.partial(_weight, bits=bits, added=_FORMATS[form], symmetric=symmetric)
    return packing.decoded(tensors, ".qweight", (".qzeros", ".scales", ".g_idx"), decode_one)


def _zeros(tensor: FileTensor, bits: int, added: int) -> Array:
    """Unpack the zero points [groups,out]."""
    return (packing.unpacked(tensor.numpy(), bits) + np.uint8(added)) & np.uint8(2**bits - 1)


def _weight(where: str, parts: Parts, bits: int, added: int, symmetric: bool) -> CheckpointWeight:
    words = packing.part(parts, ".qweight", packing.INT32, 2)
    scales = packing.part(parts, ".scales", packing.FLOATS, 2)
    zeros = packing.part(parts, ".qzeros", packing.INT32, 2)
    shape = (words.shape[1], words.shape[0] * 32 // bits)
    packing.check_shape(scales, (scales.shape[0], shape[0]))
    packing.check_shape(zeros, (scales.shape[0], shape[0] * bits // 32))
    weight = packing.whole_numbers(
        where,
        bits,
        shape,
        lambda: packing.unpacked(words.numpy().T, bits),
        packing.scales_of(scales, turned=True),
        None if symmetric else lambda: _zeros(zeros, bits, added).T,
    )
    if ".g_idx" not in parts:
        return weight
    return packing.in_groups(weight, packing.part(parts, ".g_idx", packing.INT32, 1))
