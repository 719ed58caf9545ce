"""Weights of all experts whose parts are made one at a time, so that nobody has to hold more than one expert."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
_PIECE = 64 << 20
"""Bytes of a tensor that is no stack that are handed on together."""


class ExpertStack(ir.LazyTensor):
    """A tensor [E,...] that makes the part of one expert when that is read. Nothing is kept.

    ``load(expert)`` returns the part as an array of the tensor's type (4-bit types: one element per byte, as numpy has
    them). ``numpy()`` makes all parts at once; :meth:`expert`, or :func:`expert_data` on its value, makes one.
    """

    def __init__(
        self, name: str | None, dtype: ir.DataType, shape: Sequence[int], load: Callable[[int], Array]
    ) -> None:
        super().__init__(self._stacked, dtype, ir.Shape(shape), name=name)
        self._load = load

    def expert(self, expert: int) -> Array:
        """One expert's part. Raises ValueError when it is not of the shape and type that the stack has."""
        part = self._load(expert)
        shape, dtype = tuple(self.shape.numpy())[1:], self.dtype.numpy()
        if part.shape != shape or part.dtype != dtype:
            raise ValueError(
                f"stack {self.name}: expert {expert} is {part.dtype}{list(part.shape)}; expected {dtype}{list(shape)}"
            )
        return part

    def tofile(self, file: Any) -> None:
        for part in packed_parts(self):
            file.write(part)

    def _stacked(self) -> ir.Tensor:
        stacked = np.empty(self.shape.numpy(), self.dtype.numpy())
        for expert in range(len(stacked)):
            stacked[expert] = self.expert(expert)
        return ir.Tensor(stacked, dtype=self.dtype, name=self.name)


def expert_data(value: ir.Value, expert: int) -> Array:
    """The part of one expert of a constant [E,...]: a view where the data lies in memory or in a mapped file as numpy
    has it; elements of 4 bits and fewer are unpacked for that expert alone."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ValueError(f"value {value.name!r} is computed when the model runs; expected a constant with experts")
    if isinstance(tensor, ExpertStack):
        return tensor.expert(expert)
    if isinstance(tensor, ir.PackedTensor) and _experts_fill_bytes(tensor):
        return _unpacked_expert(tensor, expert)
    return tensor.numpy()[expert]


def _unpacked_expert(tensor: ir.PackedTensor, expert: int) -> Array:
    stored = tensor.numpy_packed().reshape(tensor.shape.numpy()[0], -1)[expert]
    return ir.PackedTensor(stored, tensor.dtype, shape=tensor.shape.numpy()[1:]).numpy()


def packed_parts(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor as ONNX stores them, in pieces: expert by expert where the tensor is a stack."""
    if isinstance(tensor, ExpertStack) and _experts_fill_bytes(tensor):
        yield from (_packed(tensor.expert(expert), tensor.dtype) for expert in range(tensor.shape.numpy()[0]))
    elif tensor.dtype.bitwidth < 8 or tensor.dtype == ir.DataType.STRING:
        yield tensor.tobytes()
    else:
        whole = _packed(tensor.numpy(), tensor.dtype)
        yield from (whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE))


def _experts_fill_bytes(stack: ir.TensorProtocol) -> bool:
    """Elements of 4 bits and fewer share bytes: one expert's last may share one with the first of the next expert."""
    return math.prod(stack.shape.numpy()[1:]) * stack.dtype.bitwidth % 8 == 0


def _packed(array: Array, dtype: ir.DataType) -> bytes | memoryview:
    if dtype.bitwidth < 8 or sys.byteorder == "big":
        return ir.Tensor(array, dtype=dtype).tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
