"""Loading the TVM runtime without importing TVM: one shared library and the small ``tvm_ffi`` package."""

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
from moec.common.once import once
from moec.errors import ArtifactError, MoecError

_LIBRARY_NAMES = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}
_SHARE_ALL_CORES = -3  # TVM's affinity mode in which every worker may run on every core of the list
_SPIN_VARIABLE, _SPINS = "TVM_THREAD_POOL_SPIN_COUNT", 20000
"""How often a worker without work asks for some before it sleeps. TVM's 300000 keep a core busy for 0.2 s after every
run; these, for about 10 ms, are enough for the time between two kernels, and between two runs of a loop."""


@once
def load_ffi() -> ModuleType:
    """The ``tvm_ffi`` package with the TVM runtime library loaded. Raises MoecError when TVM is not installed."""
    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise MoecError("the TVM runtime is not installed: pip install apache-tvm==0.27.0.post1")
    library = pathlib.Path(found.origin).parent / "lib" / _LIBRARY_NAMES.get(sys.platform, "libtvm_runtime.so")
    os.environ.setdefault(_SPIN_VARIABLE, str(_SPINS))  # read when the first worker starts
    with without_torch():
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


def configure_pool(count: int) -> None:
    """Give the calling thread a pool of ``count`` threads, itself included, which may run on all cores available to
    the process. Only the first call of a thread decides how many there can be: see :mod:`moec.runtime.workers`."""
    cores = available_cores()
    # A pool never outgrows the list it was first given, and without a list it has half of the cores.
    length = 1 if count == 1 else max(count, len(cores))
    listed = [str(cores[position % len(cores)]) for position in range(length)]
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    load_ffi().get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, listed)
    if count == 1 and own is not None:
        os.sched_setaffinity(0, own)  # it is the caller's thread, which TVM has bound to the only core of the list


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Inside, the calling thread imports no torch that was not imported before: TVM does where it is installed, which
    takes a second and which neither compiling nor running a model needs. Other threads import what they want."""
    before = getattr(_importing, "without_torch", False)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # for good: taking it away, another thread's import could miss a finder
    _importing.without_torch = True
    try:
        yield
    finally:
        _importing.without_torch = before


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Says of torch that there is none, to threads that are :func:`without_torch`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torch" and getattr(_importing, "without_torch", False):
            raise ModuleNotFoundError("torch is not imported for this", name="torch")


_importing = threading.local()
_finder = _TorchFinder()
