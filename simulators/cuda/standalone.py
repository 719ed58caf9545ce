"""Builds of standalone programs (:mod:`moec.targets.cuda.standalone`) for the processor, in place of nvcc."""

from __future__ import annotations

import pathlib
import re

from moec.common.scratch import ScratchFolder
from moec.simulators.cuda import library
from moec.simulators.cuda.kernels import find_kernels

_LAUNCH = re.compile(r"(?P<kernel>\w+)<<<(?P<how>.*)>>>\(")


def build_standalone(source: pathlib.Path, program: pathlib.Path) -> None:
    """Compile the CUDA C of ``source`` to ``program``. Raises UnsupportedError for an instruction or function without a
    model, MoecError where there is no g++."""
    from tvm_ffi import libinfo

    runtime = pathlib.Path(libinfo.find_libtvm_ffi())
    compiler = library.find_compiler()
    # C++20 converts a number to a dim3, as CUDA does.
    command = [compiler, *library.OPTIONS, "-std=c++20", *library.includes(), "-include", "standalone_runtime.h"]
    with ScratchFolder() as folder:
        text = pathlib.Path(folder) / "program.cpp"
        text.write_text(_translated(source.read_text(encoding="utf-8")), encoding="utf-8")
        library.run_compiler([*command, str(text), "-o", str(program), str(runtime), f"-Wl,-rpath,{runtime.parent}"])


def _translated(source: str) -> str:
    """The program as C++, with its launches replaced by calls of the emulator."""
    kernels = {kernel.name: kernel for kernel in find_kernels(source)}

    def launched(match: re.Match[str]) -> str:
        kernel = kernels[match["kernel"]]
        facts = f'{{"{kernel.name}", nullptr, {kernel.most_threads}, {kernel.shared_bytes}, {kernel.pool_alignment}, '
        facts += f"{kernel.red_zones}, {kernel.cluster}}}"
        return f"emulated_launch<{kernel.name}>({kernel.name}, {facts}, {match['how']}, "

    return _LAUNCH.sub(launched, library.emulation_source(source, []))
