"""AWQ in the layout of AutoAWQ's ``gemm``.

Tensors of a product [out,in]: ``qweight`` int32 [in, out/8] packs 8 numbers of 4 bits each, lowest bits first, for the
outputs 0, 2, 4, 6, 1, 3, 5, 7 of their eight; ``qzeros`` [groups, out/8] likewise; ``scales`` [groups, out]. A weight
is scale * (number - zero). Source: ``unpack_awq`` and ``dequantize_gemm`` of awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.frontend.huggingface.quantised import packing
from moec.frontend.huggingface.quantised.packing import Array, Parts

_BITS = 4
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place in its word of the number of each of eight outputs."""


def decode(tensors: Mapping[str, FileTensor], settings: dict[str, Any], where: str) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint by their names as floats. Raises as :func:`decode_names`."""
    bits, version = settings.get("bits"), str(settings.get("version", "gemm")).lower()
    if bits != _BITS or version != "gemm":
        raise UnsupportedError(
            f"{where}: AWQ of {str(bits)[:20]} bits in the layout {version[:40]!r}; expected 4 bits in gemm"
        )
    return packing.decoded(tensors, ".qweight", (".qzeros", ".scales"), _weight)


def _weight(where: str, parts: Parts) -> CheckpointWeight:
    words = packing.part(parts, ".qweight", packing.INT32, 2)
    scales = packing.part(parts, ".scales", packing.FLOATS, 2)
    zeros = packing.part(parts, ".qzeros", packing.INT32, 2)
    shape = (words.shape[1] * 8, words.shape[0])
    packing.check_shape(scales, (scales.shape[0], shape[0]))
    packing.check_shape(zeros, (scales.shape[0], words.shape[1]))
    return packing.whole_numbers(
        where,
        _BITS,
        shape,
        lambda: _numbers(words.numpy()),
        packing.scales_of(scales, turned=True),
        lambda: _numbers(zeros.numpy()),
    )


def _numbers(words: Array) -> Array:
    """Unpack words [rows,out/8] to numbers [out,rows]."""
    numbers = packing.unpacked(words, _BITS).reshape(len(words), -1, len(_PLACES))
    return np.ascontiguousarray(numbers[:, :, _PLACES].reshape(len(words), -1).T)
