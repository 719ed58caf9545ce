"""The emulated driver: TVM's device and the functions of NVIDIA's driver that moec calls, in one library of C++.

It records captures as a GPU does: work with the addresses and numbers of the capture, which a launch of the graph
repeats. Calls that a real driver refuses while a stream is captured are errors here, and every call is counted.
"""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
from typing import Any

from moec.common.once import once
from moec.runtime.library import load_ffi
from moec.simulators.cuda.library import build_library, includes
from moec.targets.cuda.device.driver import Driver

_SOURCE = pathlib.Path(__file__).parent / "include" / "driver" / "driver.cpp"
BUILT = pathlib.Path(__file__).parent / "libdriver.so"
"""The library where moec was copied without its sources, and without TVM's headers. Python would import a ``driver.so``
in place of this module."""
_DEVICE_API = "device_api.cuda"


def driver_library() -> pathlib.Path:
    """The library: :data:`BUILT` where it is there, else built by g++ and kept in the user's cache. Raises MoecError
    where there is no g++."""
    if BUILT.is_file():
        return BUILT
    tvm = importlib.util.find_spec("tvm")
    assert tvm is not None and tvm.origin is not None, "the runtime is loaded from it"
    package = pathlib.Path(tvm.origin).parent
    libraries = [str(package / "lib" / "libtvm_runtime.so")]
    return build_library("driver", _SOURCE, [*includes(), f"-I{package / 'include'}"], libraries)


@once
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(driver_library()))
    library.emulated_device_api.restype = ctypes.c_void_p
    library.emulated_counts.restype = ctypes.c_char_p
    return library


@once
def emulated_driver() -> Driver:
    """Install the emulated driver as this process's GPU, and return it. Raises MoecError where there is no g++."""
    ffi, library = load_ffi(), _library()
    device_api = ctypes.c_void_p(library.emulated_device_api())
    ffi.register_global_func(_DEVICE_API, lambda: device_api, override=True)
    return Driver(library)


def launch_recorder() -> Any:
    """The address of the function that a kernel's entry point asks whether a launch belongs to a capture."""
    return ctypes.cast(_library().record_launch, ctypes.c_void_p)


def driver_calls() -> dict[str, int]:
    """Count the calls of this process so far by name: ``cudaMalloc``, ``launch``, ``cuGraphLaunch``, ``copy to host``,
    and for memory that is not pinned ``pageable copy to host``, ... Entries such as ``bytes of copy to host`` are the
    bytes of both."""
    lines = _library().emulated_counts().decode().splitlines()
    return {name: int(number) for name, number in (line.split("=") for line in lines)}
