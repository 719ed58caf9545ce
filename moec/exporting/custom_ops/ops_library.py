"""The shared library of custom operators: programs of blocks, the C runtime of moec, and what joins them to ONNX
Runtime."""

from __future__ import annotations

import dataclasses
import pathlib
import platform
from collections.abc import Sequence

from moec.artifacts.c_form.form import library_files
from moec.artifacts.c_form.toolchain import Toolchain, build, end_of, find_toolchain, run_tool
from moec.common.errors import MoecError
from moec.common.scratch import ScratchFolder
from moec.exporting.custom_ops.block_program import BlockProgram

_SOURCES = pathlib.Path(__file__).with_name("library")
_HEADER = "onnxruntime_c_api.h"
_HEADER_FOLDERS = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime")
_OPTIONS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-I.")


@dataclasses.dataclass(frozen=True)
class OpsTools:
    """A C compiler that finds the C header of ONNX Runtime."""

    compilers: Toolchain
    include: tuple[str, ...]


def find_tools() -> OpsTools:
    """Find compiler and header. Raises MoecError that says what to install."""
    machine = platform.machine().lower()
    tools = find_toolchain({"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine))
    include = tuple(f"-I{folder}" for folder in _HEADER_FOLDERS if pathlib.Path(folder, _HEADER).is_file())
    probe = [*tools.compiler, *include, "-E", "-x", "c", "-"]
    if end_of(probe, text=f"#include <{_HEADER}>\n").returncode:
        raise MoecError(
            f"--for onnxruntime-moec needs {_HEADER} of ONNX Runtime 1.21 or newer, and {tools.compiler[0]} does not "
            "find it; on Debian: apt-get install libonnxruntime-dev, or name its folder in the environment variable "
            "CPATH"
        )
    return OpsTools(tools, include)


def ops_library(tools: OpsTools, programs: Sequence[BlockProgram]) -> bytes:
    """Build the library. Its only symbol for others is RegisterCustomOps."""
    runtime = library_files()
    with ScratchFolder() as scratch:
        folder = pathlib.Path(scratch)
        for file, content in runtime.items():
            (folder / file).write_bytes(content)
        for path in _SOURCES.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        archives = []
        for program in programs:
            archives.append(f"{program.name}.a")
            built = build(tools.compilers, program.name, program.text, runtime, program.objects)
            (folder / archives[-1]).write_bytes(built.static)
        (folder / "programs.c").write_text(_programs(programs))
        (folder / "exports").write_text("{ global: RegisterCustomOps; local: *; };\n")
        own = ["moec_ops.c", "moec_ops_memory.c", "moec_ops_threads.c", "programs.c"]
        run_tool(folder, [*tools.compilers.compiler, *_OPTIONS, *tools.include, "-c", *own])
        objects = [f"{pathlib.Path(file).stem}.o" for file in own]
        link = ["-shared", "-Wl,--version-script,exports", "-Wl,-z,noexecstack,--no-undefined,-s", "-o", "ops.so"]
        run_tool(folder, [*tools.compilers.compiler, *link, *objects, *archives, "-lm", "-lpthread", "-ldl"])
        return (folder / "ops.so").read_bytes()


def _programs(programs: Sequence[BlockProgram]) -> str:
    declared = "".join(f"extern const moec_program {program.name}_program;\n" for program in programs)
    listed = "".join(f"&{program.name}_program, " for program in programs)
    return f'#include "moec_ops.h"\n\n{declared}\nconst moec_program *const moec_ops_programs[] = {{{listed}NULL}};\n'
