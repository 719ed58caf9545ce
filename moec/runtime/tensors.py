"""Arrays to and from the TVM runtime, without copying where alignment and layout allow."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import DTYPES, is_extension
from moec.common.errors import InputError
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice, on_device

ALIGNMENT = 16
"""Bytes: kernels take data that begins at a multiple of it, as all memory from malloc does."""
_CACHE_LINE = 64  # where copies begin: loads of whole lines are fastest there
_KIND_OF_DEVICE = ctypes.sizeof(ctypes.c_void_p)
"""Offset of the kind of device in DLPack's tensor: after the address of the data."""
_tensor_in = ctypes.pythonapi.PyCapsule_GetPointer
_tensor_in.restype, _tensor_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
CPU = 1
"""DLPack's number for the memory of the host."""


def array_of(name: str, value: Any, device: int = CPU) -> np.ndarray | OnDevice:
    """Convert ``value`` (an array, a numpy scalar or anything with ``__dlpack__``, such as a torch tensor) to a numpy
    array over the same memory, or to a stand-in where it is on the kind of ``device``. Raises InputError, calling the
    value ``name``."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        raise InputError(f"input {name!r} is a {type(value).__name__}; expected a numpy array or a torch tensor")
    if getattr(value, "requires_grad", False):  # whether DLPack refuses these depends on how it is called
        raise InputError(f"input {name!r} requires gradients, and only inference is compiled: call .detach() on it")
    if hasattr(value, "resolve_neg"):  # PyTorch's lazy conjugates and views are copied, as numpy's arrays are
        value = value.resolve_conj().resolve_neg().contiguous()
    try:
        tensor = load_ffi().from_dlpack(value, require_alignment=1)
    except Exception as error:  # each library has its own error (gradients, devices, layouts)
        raise InputError(f"input {name!r} cannot be read through DLPack: {_first_line(error)}") from error
    kind = tensor.device.dlpack_device_type()
    if kind not in (CPU, device):
        raise InputError(f"input {name!r} is on {tensor.device}; expected host memory: move it with .cpu()")
    if not tensor.is_contiguous():
        raise InputError(f"input {name!r} is not contiguous; call .contiguous() on it")
    return from_runtime(tensor) if kind == CPU else on_device(name, value, tensor, ALIGNMENT)


def to_runtime(array: np.ndarray) -> Any:
    """Convert an array to the runtime's tensor over its memory, without a copy when it is C-contiguous and 16-byte
    aligned."""
    # The usual path is short, because code that runs once in a while has to be fetched from memory.
    if array.size and not is_extension(array.dtype):
        with contextlib.suppress(RuntimeError, BufferError):  # misaligned or strided, and read-only
            return load_ffi().from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)
    array = _aligned(array)
    shape, dtype = array.shape, array.dtype
    if not array.size:
        return view(load_ffi().from_dlpack(np.empty(ALIGNMENT, np.uint8), require_alignment=1), shape, dtype)
    if is_extension(dtype):
        array = array.view(f"u{dtype.itemsize}")
    if not array.flags.writeable:
        array = _over_memory(array.ctypes.data, array.nbytes, array).view(array.dtype).reshape(shape)
    tensor = load_ffi().from_dlpack(array, require_alignment=1)
    return view(tensor, shape, dtype) if is_extension(dtype) else tensor


def new_tensor(shape: Any, dtype: Any, kind: int) -> Any:
    """Allocate uninitialised memory on the first device of a kind, by DLPack's numbers."""
    ffi = load_ffi()
    return ffi.get_global_func("runtime.TVMTensorAllocWithScope")(ffi.Shape(shape), dtype, ffi.device(kind, 0), None)


def from_runtime(tensor: Any) -> np.ndarray:
    """View a contiguous tensor's memory as a numpy array, which keeps it alive."""
    with contextlib.suppress(RuntimeError, BufferError):  # types that only ml_dtypes has; numpy 2.5 raises the latter
        return np.from_dlpack(tensor)
    return over_runtime(tensor)


def over_runtime(tensor: Any) -> np.ndarray:
    """View a contiguous tensor's memory as :func:`from_runtime`, whatever the device that the tensor claims to be on:
    that of an emulated GPU is the host's."""
    dtype = DTYPES[str(tensor.dtype)]
    shape = tuple(tensor.shape)
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    return _over_memory(tensor.data_ptr(), size, tensor).view(dtype).reshape(shape)


def view(tensor: Any, shape: Sequence[int], dtype: np.dtype, first: int = 0) -> Any:
    """View a tensor's memory, from byte ``first`` on, with another shape and type. It serves for parts, for types that
    numpy cannot export, and for empty arrays, whose strides are 0 in numpy."""
    ffi = load_ffi()
    return ffi.get_global_func("runtime.TVMTensorCreateView")(tensor, ffi.Shape(shape), ffi.dtype(dtype.name), first)


def tensor_at(address: int, shape: Sequence[int], dtype: np.dtype, kind: int, owner: Any) -> Any:
    """Make a tensor over memory at an address of a kind of device, by DLPack's numbers, which ``owner`` keeps.

    Unlike a :func:`view` from a later byte on it has no offset, which kernels do not take."""
    capsule = _over_memory(address, max(1, math.prod(shape) * dtype.itemsize), owner).__dlpack__()
    ctypes.c_int32.from_address(_tensor_in(capsule, b"dltensor") + _KIND_OF_DEVICE).value = kind
    return view(load_ffi().from_dlpack(capsule, require_alignment=1), shape, dtype)


def _aligned(array: np.ndarray) -> np.ndarray:
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    memory = np.empty(array.nbytes + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def from_address(address: int, size: int) -> np.ndarray:
    """View ``size`` bytes of memory that the caller keeps."""
    return _over_memory(address, size, None)


def _over_memory(address: int, size: int, owner: Any) -> np.ndarray:
    memory = (ctypes.c_uint8 * size).from_address(address)
    memory.owner = owner  # type: ignore[attr-defined]  # what numpy holds on to keeps the owner alive
    return np.frombuffer(memory, np.uint8)  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
