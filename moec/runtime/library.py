"""Loader of the TVM runtime without TVM itself: one shared library and the small ``tvm_ffi`` package."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.abc
import importlib.util
import os
import pathlib
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from moec.common.cores import available_cores
from moec.common.errors import ArtifactError, MoecError
from moec.common.once import once

_LIBRARY_NAMES = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}
_SHARE_ALL_CORES = -3  # TVM's affinity mode in which every worker may run on every core of the list
_SPIN_VARIABLE, _SPINS = "TVM_THREAD_POOL_SPIN_COUNT", 20000
"""Times that an idle worker polls for work before it sleeps. TVM's 300000 keep a core busy for 0.2 s after every run.
This number takes about 10 ms, enough for the time between two kernels, and between two runs of a loop."""


@once
def load_ffi() -> ModuleType:
    """Load the TVM runtime library and return the ``tvm_ffi`` package. Raises MoecError when TVM is not installed."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise MoecError("the TVM runtime is not installed: pip install apache-tvm==0.27.0.post1")
    library = pathlib.Path(spec.origin).parent / "lib" / _LIBRARY_NAMES.get(sys.platform, "libtvm_runtime.so")
    os.environ.setdefault(_SPIN_VARIABLE, str(_SPINS))  # read when the first worker starts
    with without_torch():
        import tvm_ffi
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MoecError(f"the TVM runtime cannot be loaded: {error}") from error
    return tvm_ffi


def load_objects(objects: Sequence[pathlib.Path], where: str) -> Any:
    """Link object files in memory and return their module. Raises ArtifactError when they do not link."""
    load_ffi()
    import tvm_ffi_orcjit

    try:
        return tvm_ffi_orcjit.default_session().load_module(list(objects))
    except Exception as error:  # the linker's errors have no common type
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{where}: its object files cannot be linked: {reason}") from error


def configure_pool(count: int) -> None:
    """Give the calling thread a pool of ``count`` threads, itself included, which may run on all cores available to the
    process. Only a thread's first call sets the limit of its pool: see :mod:`moec.runtime.workers`."""
    cores = available_cores()
    # A pool never outgrows its first list, and without a list it has half of the cores.
    length = 1 if count == 1 else max(count, len(cores))
    listed = [str(cores[position % len(cores)]) for position in range(length)]
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    load_ffi().get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, listed)
    if count == 1 and own is not None:
        os.sched_setaffinity(0, own)  # TVM has bound the caller's thread to the list's only core


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Context in which the calling thread cannot newly import torch.

    TVM imports it where it is installed. That takes a second, and neither compiling nor running a model needs it. Other
    threads are not affected.
    """
    before = getattr(_importing, "without_torch", False)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # permanently: removing it could let another thread's import miss a finder
    _importing.without_torch = True
    try:
        yield
    finally:
        _importing.without_torch = before


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Import finder that hides torch from threads in :func:`without_torch`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torch" and getattr(_importing, "without_torch", False):
            raise ModuleNotFoundError("torch is not imported for this", name="torch")


_importing = threading.local()
_finder = _TorchFinder()
