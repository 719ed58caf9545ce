"""Builds of the shared libraries that run CUDA kernels on the processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from moec.common.errors import MoecError, UnsupportedError
from moec.common.scratch import ScratchFolder
from moec.runtime.machine import cpu_features, cpu_name
from moec.simulators.cuda.entry_points import entry_point
from moec.simulators.cuda.kernels import find_kernels, place_shared_memory
from moec.simulators.cuda.launch import EmulatedLaunch
from moec.simulators.cuda.translate import translate_assembly
from moec.targets.build_cache import cached
from moec.targets.cuda.hardware.architectures import LIMITS

ROOMIEST = max(LIMITS, key=lambda name: LIMITS[name].shared_bytes)
"""The architecture whose blocks may have the most shared memory, so that every kernel fits; of several, the oldest."""

Completion = Literal["latest", "earliest", "late copies", "late products"]
"""The time at which asynchronous copies and products complete; in the last two the other kind completes early."""

_LATE_COPIES = ("latest", "late copies")
_LATE_PRODUCTS = ("latest", "late products")
_INCLUDE = pathlib.Path(__file__).parent / "include"
_FIBERS = pathlib.Path(__file__).parent.parent / "fibers"
OPTIONS = (
    # C++ as CUDA compiles it. Sums are not contracted, so that results are the same on every processor.
    *("-std=c++17", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv"),
    *("-fno-delete-null-pointer-checks", "-fstack-clash-protection"),  # so that every bad access faults
    *("-fPIC", "-fvisibility=hidden", "-pthread", "-w"),
)
_OPTIMISED = "-O1"
"""A higher level saves a seventh of the kernels' time, and takes a third longer to compile."""
_SOON_READY = "-Og"
"""Compiles in two thirds of the time of _OPTIMISED; kernels run half as fast, those for Hopper even slower."""
_PORTABLE = "-march=x86-64-v3"
"""Overrides the processor in OPTIONS."""
_POISON = "-ftrivial-auto-var-init=pattern"
"""Variables that a kernel does not initialise hold garbage, instead of whatever is on the stack. Since g++ 12."""
_WATCH = ("-DEMULATOR_WATCH", "-fsanitize=thread")
"""Options with which compiled code calls ThreadSanitizer's functions on every access; the emulator defines its own
functions of these names."""
_ALIGNED = "-fsanitize=alignment"
"""The option with which compiled code calls a function of UBSan's for a misaligned address, which the emulator defines
likewise."""
_UNKNOWN_NAME = re.compile(r"error: '?([\w:]+)'? (?:was not declared|has not been declared|does not name a type)")
_ERROR = re.compile(r"(?:error: |undefined reference to )(.*)")


def emulated_library(
    source: str,
    launches: Sequence[EmulatedLaunch],
    *,
    completion: Completion = "latest",
    first_thread: int = 0,
    watch: bool = False,
    architecture: str = ROOMIEST,
    soon_ready: bool = False,
    portable: bool = False,
) -> pathlib.Path:
    """A shared library that exports every kernel under TVM FFI's C ABI as ``__tvm_ffi_<name>``.

    ``tvm_ffi.load_module`` loads it. Its functions take a kernel's arguments and then the values of its launch, like
    those of TVM's CUDA module. Libraries are kept in the user's cache.

    - ``completion``: asynchronous copies and products complete at the latest or the earliest time that the hardware
      allows. ``first_thread``: the thread that runs first in each block. A kernel whose result depends on either of
      these lacks a barrier or a wait.
    - ``watch``: watch every load and store to shared memory, which is slow. Accesses of two threads without a barrier
      between them are errors, and so are those of two blocks to the arrays given to :func:`watch_arrays`.
    - ``architecture``: whose limits of shared memory apply.
    - ``soon_ready``: compile in less time to slower code, for kernels with little to compute.
    - ``portable``: compile for any processor with AVX2 instead of this one.

    Raises UnsupportedError for an instruction or function without a model, MoecError where there is no g++ and for an
    unknown completion, architecture or launch.
    """
    if completion not in get_args(Completion):
        raise MoecError(f"completion {completion!r}: expected one of {', '.join(get_args(Completion))}")
    if architecture not in LIMITS:
        raise MoecError(f"architecture {architecture!r}: its limits are not known; expected one of {', '.join(LIMITS)}")
    translated = emulation_source(source, launches)
    compiler = find_compiler()
    optimised = _SOON_READY if soon_ready else _OPTIMISED
    command = [compiler, *_options_of(compiler), optimised, _ALIGNED, *includes(), *(_WATCH if watch else ())]
    command += [_PORTABLE] if portable else []
    settings = _settings(first_thread, LIMITS[architecture].shared_bytes, completion)
    name = f"{_key(translated, settings, command)}.so"

    def link(path: pathlib.Path) -> None:
        _link([_kernels(translated, command), _emulator(command)], settings, compiler, path)

    return cached("emulator", name, link)


def _settings(first_thread: int, shared_limit: int, completion: Completion) -> str:
    """The C++ definition of the settings in ``emulator/settings.h``."""
    early = (str(completion not in late).lower() for late in (_LATE_COPIES, _LATE_PRODUCTS))
    values = ", ".join([str(first_thread), str(shared_limit), *early])
    return f"const emulator::Settings emulator::settings = {{{values}}};\n"


def watch_arrays(library: Any, arrays: Iterable[tuple[int, int]]) -> None:
    """Have a loaded library, built to watch, check these arrays, given by address and bytes, and no others for races
    between blocks: no block may read or write what another writes in the same launch, except by atomic operations."""
    library["watch_arrays"](*itertools.chain.from_iterable((ctypes.c_void_p(at), size) for at, size in arrays))


def schedule_threads(library: Any, behind: Iterable[int] = (), seed: int = 0) -> None:
    """Set an adverse order, among those that the hardware allows, in which the kernels of a loaded library run from now
    on. ``behind``: warps of each block, of the first 32, that run only when nothing else can. ``seed``: of a random
    order of warps and of completions; with 0 warps run in turn, and ``completion`` of the library applies."""
    library["schedule_threads"](sum(1 << warp for warp in set(behind)), seed)


def emulation_source(source: str, launches: Sequence[EmulatedLaunch]) -> str:
    """The C++ of a library: the CUDA source with its assembly replaced by models, and the entry points."""
    kernels = find_kernels(source)
    by_name = {kernel.name: kernel for kernel in kernels}
    for launch in launches:
        if launch.name not in by_name:
            raise MoecError(
                f"kernel {launch.name}: not defined in the CUDA source, which has {', '.join(by_name) or 'none'}; "
                "give the launches of the same module"
            )
    body = translate_assembly(place_shared_memory(source, kernels))
    return body + "".join(entry_point(by_name[launch.name], launch) for launch in launches)


def includes() -> list[str]:
    from tvm_ffi import libinfo

    folders = dict.fromkeys([str(_INCLUDE), libinfo.find_include_path(), libinfo.find_dlpack_include_path()])
    return [f"-I{folder}" for folder in folders]


@functools.cache
def _headers() -> bytes:
    """A digest of the emulator's own sources."""
    digest = hashlib.sha256()
    for folder in (_INCLUDE, _FIBERS):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
    return digest.digest()


def _key(*parts: str | Sequence[str]) -> str:
    """The cache key of a file built from these texts and commands on this machine."""
    processor = json.dumps([platform.machine(), cpu_name(), sorted(cpu_features()), _version(find_compiler()), parts])
    return hashlib.sha256(_headers() + processor.encode()).hexdigest()[:24]


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def find_compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        raise MoecError("g++ was not found; the CUDA emulator needs it to compile kernels: install a C++ compiler")
    return compiler


@functools.cache
def _options_of(compiler: str) -> tuple[str, ...]:
    """The options that this compiler supports."""
    probe = [compiler, _POISON, "-x", "c++", "-E", os.devnull]
    understood = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return (*OPTIONS, _POISON) if understood else OPTIONS


def _kernels(translated: str, command: Sequence[str]) -> pathlib.Path:
    """The object file of the kernels. The emulator's headers are precompiled, 60 MB for each set of options."""
    header = cached("emulator", f"{_key(command)}.h.gch", lambda path: _precompile(command, path))
    start = [*command, "-include", str(header.with_suffix(""))]
    return cached("emulator", f"{_key(translated, command)}.o", lambda path: _compile(translated, start, path))


def _precompile(command: Sequence[str], header: pathlib.Path) -> None:
    run_compiler([*command, "-x", "c++-header", str(_INCLUDE / "emulator" / "emulator.h"), "-o", str(header)])


def _emulator(command: Sequence[str]) -> pathlib.Path:
    """The object file of the emulator, the same for all kernels."""
    command = [*command, "-c", str(_INCLUDE / "emulator" / "emulator.cpp")]
    return cached("emulator", f"{_key(command)}.o", lambda path: run_compiler([*command, "-o", str(path)]))


def _compile(text: str, command: Sequence[str], compiled: pathlib.Path) -> None:
    with ScratchFolder() as folder:
        source = pathlib.Path(folder) / "kernels.cpp"
        source.write_text(text, encoding="utf-8")
        run_compiler([*command, "-c", str(source), "-o", str(compiled)])


def _link(objects: Sequence[pathlib.Path], settings: str, compiler: str, library: pathlib.Path) -> None:
    from tvm_ffi import libinfo

    with ScratchFolder() as folder:
        compiled = pathlib.Path(folder) / "settings.o"
        _compile(settings, [compiler, "-fPIC", "-include", str(_INCLUDE / "emulator" / "settings.h")], compiled)
        # Link without the options: the one that watches accesses would link ThreadSanitizer itself.
        inputs = [*map(str, objects), str(compiled), str(libinfo.find_libtvm_ffi())]
        run_compiler([compiler, "-shared", "-pthread", "-Wl,-z,defs", *inputs, "-o", str(library)])


def build_library(name: str, source: pathlib.Path, options: Sequence[str], libraries: Sequence[str]) -> pathlib.Path:
    """Build a shared library of one source, which is linked with TVM FFI and ``libraries``; kept in the user's cache.
    Raises MoecError where there is no g++."""
    from tvm_ffi import libinfo

    command = [find_compiler(), "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w", *options]
    inputs = [*libraries, str(libinfo.find_libtvm_ffi())]

    def link(path: pathlib.Path) -> None:
        run_compiler([*command, "-shared", "-pthread", str(source), *inputs, "-o", str(path)])

    return cached("emulator", f"{_key(name, command, inputs)}.so", link)


def run_compiler(command: Sequence[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C"}  # messages with plain quotes
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise _compile_error(done.stderr)


def _compile_error(messages: str) -> MoecError:
    if unknown := _UNKNOWN_NAME.search(messages):
        return UnsupportedError(
            f"CUDA function or type {unknown[1]}: the emulator has no model of it; expected one that is defined in "
            "simulators/cuda/include; write a model, or run this kernel on a GPU"
        )
    first = _ERROR.search(messages)
    return UnsupportedError(
        f"the CUDA source does not compile for emulation: {first[1] if first else messages.strip()[-500:]}; "
        "expected CUDA C as TVM generates it"
    )
