"""Tensors in a GPU's memory: used as inputs without a copy, and returned as results."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import DTYPES
from moec.common.errors import InputError

_FIRST = 0  # programs run on the first device


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """Stand-in for an array in checks of inputs. ``tensor``: the runtime's, over the same memory. ``torch``: whether it
    came as a tensor of PyTorch."""

    tensor: Any
    dtype: np.dtype
    shape: tuple[int, ...]
    torch: bool

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def on_device(name: str, value: Any, tensor: Any, alignment: int) -> OnDevice:
    """Wrap the input ``value`` with its runtime tensor. Raises InputError for one that kernels cannot read in place: on
    another GPU, not aligned to ``alignment`` bytes, or of an element type that no model has."""
    if tensor.device.index != _FIRST:
        raise InputError(f"input {name!r} is on {tensor.device}; the model runs on the first GPU: move it with .to(0)")
    if str(tensor.dtype) not in DTYPES:
        raise InputError(f"input {name!r} has dtype {tensor.dtype}; expected one of {', '.join(DTYPES)}")
    if tensor.numel() and tensor.data_ptr() % alignment:
        raise InputError(
            f"input {name!r} begins at an address that is not a multiple of {alignment} bytes, as parts of other "
            "tensors may; call .clone() on it"
        )
    return OnDevice(tensor, DTYPES[str(tensor.dtype)], tuple(tensor.shape), is_torch(value))


def is_torch(value: Any) -> bool:
    """Whether the value is a tensor of PyTorch, without importing it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def has_torch(arrays: Sequence[Any]) -> bool:
    """Whether one of the arrays is a tensor of PyTorch on a GPU."""
    return any(isinstance(array, OnDevice) and array.torch for array in arrays)


def handed_out(tensor: Any, arrays: Sequence[Any], copy: Callable[[Any], Any] | None) -> Any:
    """Convert a result on the device for the caller of a model on ``arrays``: to a tensor of PyTorch over the same
    memory where an input was one; otherwise it stays the runtime's, which has DLPack. ``copy`` is not None where the
    result needs memory of its own; it copies the runtime's tensor."""
    if has_torch(arrays):
        shared = sys.modules["torch"].from_dlpack(tensor)
        return shared.clone() if copy else shared
    return copy(tensor) if copy else tensor
