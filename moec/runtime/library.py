"""Loading the TVM runtime without importing TVM: one shared library and the small ``tvm_ffi`` package."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import pathlib
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from moec.errors import ArtifactError, MoecError
from moec.runtime.machine import available_cores

_LIBRARY_NAMES = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}
_SHARE_ALL_CORES = -3  # TVM's affinity mode in which every worker may run on every core of the list
_SPIN_VARIABLE, _SPINS = "TVM_THREAD_POOL_SPIN_COUNT", 20000
"""How often a worker without work asks for some before it sleeps. TVM's 300000 keep a core busy for 0.2 s after every
run; these, for about 10 ms, are enough for the time between two kernels, and between two runs of a loop."""
_pool = threading.local()  # TVM keeps one thread pool for each calling thread


@functools.cache
def load_ffi() -> ModuleType:
    """The ``tvm_ffi`` package with the TVM runtime library loaded. Raises MoecError when TVM is not installed."""
    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise MoecError("the TVM runtime is not installed: pip install apache-tvm==0.27.0.post1")
    library = pathlib.Path(found.origin).parent / "lib" / _LIBRARY_NAMES.get(sys.platform, "libtvm_runtime.so")
    os.environ.setdefault(_SPIN_VARIABLE, str(_SPINS))  # read when the first worker starts
    with _without_torch():
        import tvm_ffi
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MoecError(f"the TVM runtime cannot be loaded: {error}") from error
    return tvm_ffi


def load_objects(objects: Sequence[pathlib.Path], where: str) -> Any:
    """Link object files in memory and return the module in them. Raises ArtifactError when they do not link."""
    load_ffi()
    import tvm_ffi_orcjit

    try:
        return tvm_ffi_orcjit.default_session().load_module(list(objects))
    except Exception as error:  # the linker's errors have no common type
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{where}: its object files cannot be linked: {reason}") from error


def use_threads(count: int) -> None:
    """Give the calling thread's pool ``count`` workers, which may run on all cores available to the process."""
    if getattr(_pool, "count", None) == count:
        return
    cores = available_cores()
    # A pool never outgrows the list it was first given, and without a list it has half of the cores.
    listed = [str(cores[position % len(cores)]) for position in range(max(count, len(cores)))]
    load_ffi().get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, listed)
    _pool.count = count


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """tvm_ffi imports torch where it is installed, which takes seconds and which running a model does not need."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
