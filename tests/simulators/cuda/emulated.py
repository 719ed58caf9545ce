"""Kernels written in CUDA C, run by the emulator on numpy arrays."""

from __future__ import annotations

import ctypes
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from moec.runtime.device_module import BEGINS_EARLY_TAG
from moec.runtime.library import load_ffi
from moec.simulators.cuda import EmulatedLaunch, emulated_library, schedule_threads, watch_arrays

TAGS = ("blockIdx.x", "blockIdx.y", "threadIdx.x", "tirx.use_dyn_shared_memory")
Kernel = Callable[..., None]


def load(source: str, *names: str, begins_early: bool = False, **options: Any) -> dict[str, Kernel]:
    """The named kernels of a source. Each takes arrays, addresses and numbers in the order of its parameters, and
    ``grid``, ``block``, ``dynamic_bytes`` and ``schedule``, arguments of :func:`schedule_threads`. ``begins_early``:
    kernels may begin before earlier ones have ended."""
    tags = (*TAGS[:-1], BEGINS_EARLY_TAG, TAGS[-1]) if begins_early else TAGS
    path = emulated_library(source, [EmulatedLaunch(name, tags) for name in names], **{"soon_ready": True, **options})
    return {name: _kernel(path, name, watch=bool(options.get("watch"))) for name in names}


def load_one(source: str, name: str, **options: Any) -> Kernel:
    return load(source, name, **options)[name]


def _kernel(path: pathlib.Path, name: str, *, watch: bool) -> Kernel:
    library = load_ffi().load_module(str(path))
    function = library[name]

    def run(
        *values: Any,
        grid: int | tuple[int, int] = 1,
        block: int = 32,
        dynamic_bytes: int = 0,
        schedule: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if watch:
            watch_arrays(library, [(v.ctypes.data, v.nbytes) for v in values if isinstance(v, np.ndarray)])
        columns, rows = grid if isinstance(grid, tuple) else (grid, 1)
        passed = [ctypes.c_void_p(v.ctypes.data) if isinstance(v, np.ndarray) else v for v in values]
        schedule_threads(library, **schedule)
        function(*passed, columns, rows, block, dynamic_bytes)

    return run


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy aligned to 64 bytes, as tensor maps require; no other access requires more."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
