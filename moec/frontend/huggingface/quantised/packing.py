"""Helpers that the formats share: numbers of few bits in larger words, groups of inputs, and weights whose parts are
several tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight, LazyArray
from moec.ir.weights.format import FormatName, WeightFormat

Array = np.ndarray[Any, Any]
WHOLE: dict[int, tuple[FormatName, Any, Any]] = {
    4: ("int4", ml_dtypes.int4, ml_dtypes.uint4),
    8: ("int8", np.int8, np.uint8),
}
"""By number of bits: the format, and the numpy types of its numbers without zero points and with them."""
FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)
INT32 = (ir.DataType.INT32,)
Parts = dict[str, FileTensor]
Decoder = Callable[[str, Parts], CheckpointWeight]


def decoded(
    tensors: Mapping[str, FileTensor], first: str, others: Collection[str], decode: Decoder, name: str = ".weight"
) -> dict[str, CheckpointWeight]:
    """Read the weights of a checkpoint, of which some are stored in several tensors.

    Where a name ends in ``first``, the tensors of the same beginning that end in ``others`` are parts of one weight.
    ``decode`` gets the place of the weight, for messages, and its parts by these ends. ``name`` becomes the end of the
    weight's name. All other tensors are weights by themselves.
    """
    starts = [full.removesuffix(first) for full in tensors if full.endswith(first)]
    parts = {
        start: {end: tensors[start + end] for end in (first, *others) if start + end in tensors} for start in starts
    }
    used = {start + end for start, ends in parts.items() for end in ends}
    weights = {full: CheckpointWeight.of(tensor) for full, tensor in tensors.items() if full not in used}
    return weights | {start + name: decode(tensors_of[first].where, tensors_of) for start, tensors_of in parts.items()}


def part(parts: Parts, end: str, dtypes: Collection[ir.DataType], rank: int) -> FileTensor:
    """Look up the part with this end. Raises MoecError where it is missing, UnsupportedError for another type or
    rank."""
    if end not in parts:
        raise MoecError(f"{next(iter(parts.values())).where}: has no {end.strip('._')} beside it; download it again")
    tensor = parts[end]
    if tensor.dtype not in dtypes or len(tensor.shape) != rank:
        expected = " or ".join(dtype.name.lower() for dtype in dtypes)
        raise UnsupportedError(
            f"{tensor.where}: is {tensor.dtype.name.lower()} {list(tensor.shape)}; expected {expected} of {rank} axes"
        )
    return tensor


def check_shape(tensor: FileTensor, expected: tuple[int, ...]) -> None:
    """Raise MoecError where the tensor has another shape."""
    if tensor.shape != expected:
        raise MoecError(
            f"{tensor.where}: is {list(tensor.shape)}, but the tensors beside it ask for {list(expected)}; they do not "
            "belong together, download the model again"
        )


def unpacked(words: Array, bits: int) -> Array:
    """Unpack the numbers of 4 or 8 bits in words along the last axis, the lowest bits first, to uint8."""
    stored = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return stored
    pairs = np.stack([stored & 15, stored >> 4], axis=-1)
    return pairs.reshape(*stored.shape[:-1], -1)


def packed(numbers: Array, bits: int) -> Array:
    """Pack numbers of 4 or 8 bits, uint8, along the last axis into words (int32): the inverse of :func:`unpacked`.
    The last word is filled up with zeros."""
    missing = -numbers.shape[-1] % (32 // bits)
    padded = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, missing)])
    stored = padded if bits == 8 else padded[..., 0::2] | (padded[..., 1::2] << 4)
    return np.ascontiguousarray(stored).view("<i4")


def whole_numbers(
    where: str,
    bits: int,
    shape: tuple[int, int],
    numbers: Callable[[], Array],
    scale: LazyArray,
    zeros: Callable[[], Array] | None,
) -> CheckpointWeight:
    """Describe the weight [out,in] = scale * (number - zero) with numbers and zeros [out,groups] from 0 to 2^bits -
    1, as uint8. Without ``zeros`` every zero is 2^(bits-1), and the stored numbers are signed. ``scale`` is
    [out,groups]."""
    name, signed, unsigned = WHOLE[bits]
    middle = 2 ** (bits - 1)
    group = group_of(where, shape, scale.shape)
    if zeros is None:
        data = lazy(lambda: (numbers().astype(np.int16) - middle).astype(signed), signed, shape)
        return CheckpointWeight(where, {"data": data, "scale": scale}, WeightFormat(name, group))
    data = lazy(lambda: numbers().astype(unsigned), unsigned, shape)
    zero = lazy(lambda: zeros().astype(unsigned), unsigned, scale.shape)
    return CheckpointWeight(where, {"data": data, "scale": scale, "zero_point": zero}, WeightFormat(name, group, True))


def group_of(where: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> int:
    """Count the inputs of ``shape`` that share a scale, 0 for all of them. Raises MoecError where sizes do not fit."""
    size, groups = shape[-1], scales[-1]
    if scales[:-1] != shape[:-1] or groups == 0 or size % groups:
        raise MoecError(f"{where}: {list(shape)} has scales for {list(scales)}; expected a scale per group of inputs")
    return 0 if groups == 1 else size // groups


def block_of(value: Any, key: str, where: str) -> tuple[int, int] | None:
    """Read the numbers of outputs and inputs that share a scale from a configuration. Returns None where it has
    none."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size > 0 for size in value):
        raise UnsupportedError(f"{where}: {key} is {str(value)[:60]}; expected two whole numbers")
    return value[0], value[1]


def scales_of(tensor: FileTensor, turned: bool = False) -> LazyArray:
    """Read scales as [out,groups]. bfloat16 becomes float32, which holds all of its numbers. ``turned``: the tensor is
    [groups,out]."""
    array = LazyArray.of(tensor)
    if turned:
        array = array.mapped(np.transpose, tensor.dtype, tensor.shape[::-1])
    if tensor.dtype == ir.DataType.BFLOAT16:
        array = array.mapped(lambda scale: scale.astype(np.float32), ir.DataType.FLOAT, array.shape)
    return array


def lazy(read: Callable[[], Array], dtype: Any, shape: tuple[int, ...]) -> LazyArray:
    """Wrap an array with an element type of numpy."""
    return LazyArray(ir.DataType.from_numpy(np.dtype(dtype)), shape, read)


def in_groups(weight: CheckpointWeight, index: FileTensor) -> CheckpointWeight:
    """Reorder the inputs of a stored weight [out,in] so that each group is contiguous. ``index`` [in] is the group of
    each input. Returns the weight itself where groups are contiguous already.

    Raises MoecError for an index of another size, UnsupportedError where groups differ in size.
    """
    assert weight.form is not None
    size = weight.data.shape[1]
    check_shape(index, (size,))
    actual = index.numpy()
    groups = np.arange(size) // (weight.form.group or max(size, 1))
    if np.array_equal(actual, groups):
        return weight
    order = np.argsort(actual, kind="stable")
    if not np.array_equal(actual[order], groups):
        raise UnsupportedError(
            f"{weight.where}: its groups (g_idx) are of different sizes, and moec has equal ones alone"
        )
    data = weight.data.mapped(lambda numbers: numbers[:, order], weight.data.dtype, weight.data.shape)
    return dataclasses.replace(weight, tables={**weight.tables, "data": data}, order=order)
