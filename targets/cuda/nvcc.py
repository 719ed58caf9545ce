"""NVIDIA's compiler: find it, and compile CUDA C with it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence

from moec.common.errors import DefectError, MoecError
from moec.common.scratch import ScratchFolder
from moec.targets.cuda.code_lines import Lined, kernels_of_ptx, lines_of_sass, sections_of
from moec.targets.cuda.hardware.architectures import is_for_newer_ones
from moec.targets.cuda.nvcc_report import EXPECTED, read_report
from moec.targets.kernel_cache import Files, through_cache

MISSING = (
    "no nvcc was found on PATH, under CUDA_HOME or in Python's packages: the artifact holds CUDA C but no code for a "
    "GPU; install it with: pip install 'moec[cuda]'"
)
_INSTALLED = pathlib.Path("/usr/local/cuda")
_PACKAGED = ("nvidia.cu13", "nvidia.cuda_nvcc")
"""Python packages of NVIDIA's that hold nvcc."""
SOURCE = "all_kernels.cu"
"""The file of an artifact's sources that nvcc compiled; line numbers in machine code refer to it."""
PREAMBLE = "preamble.cuh"
"""The file of an artifact's sources with the text before all kernels."""
_OPTIONS = ("-std=c++17", "-O3", "-lineinfo", f"-diag-suppress={','.join(EXPECTED)}")
_OPTION_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
"""Environment variables from which nvcc takes options, too."""
_UNKNOWN = "Unsupported gpu architecture"
"""Text of nvcc's error for an architecture that is too new or too old for it."""
_BINARY, _TEXTS = "binary", "texts"
_NEWER_PTX = re.compile(r"^\.version (?:9\.[1-9]|[1-9]\d)\S*$", re.MULTILINE)
_OLDEST_PTX = "9.0"
"""The version of PTX that the oldest driver for CUDA 13 (R580) reads. It refuses newer versions, which a newer nvcc
writes whatever the text uses."""
_PTX_FILE = re.compile(r'^(?P<number>\t\.file\t\d+ )"(?P<path>[^"\n]*)"[^\n]*$', re.MULTILINE)
"""The declaration of a source file, with its path, time and size."""
_PTX_MODULE = re.compile(f"({','.join(map(str, b'_INTERNAL_'))},)(?:[0-9]+,){{8}}")
"""Eight digits that nvcc derives from the path of the source. They are part of the names of internal functions, which
PTX lists byte by byte for debuggers."""
_SASS_FUNCTION = re.compile(r"^\s*Function : (?P<name>\w+)\n.*?(?=^\s*Function : |\Z)", re.MULTILINE | re.DOTALL)
_CALL, _SPILL = re.compile(r"\bCALL\."), re.compile(r"\b(?:LDL|STL)\b")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Code for one architecture. ``ptx``, ``sass``, ``resources`` and ``advisories`` are by function. ``sass`` is empty
    if cuobjdump, or the nvdisasm that it calls, is not installed. ``lines``: by form and function, the lines of the
    source, from 1, that the lines of its text come from; 0 for none."""

    binary: bytes
    """Machine code, and PTX from which drivers compile for newer GPUs, if the architecture allows that."""
    ptx: dict[str, str]
    sass: dict[str, str]
    resources: dict[str, str]
    advisories: dict[str, list[str]]
    """Advisories of nvcc and ptxas, by function; under an empty name those that concern no function."""
    lines: dict[str, dict[str, list[int]]]


def find_tool(name: str) -> pathlib.Path | None:
    """A tool of the CUDA toolkit: on PATH, under CUDA_HOME, or from a Python package."""
    on_path = shutil.which(name)
    if on_path:
        return pathlib.Path(on_path)
    homes = [pathlib.Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else [_INSTALLED]
    for package in _PACKAGED:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        homes += [pathlib.Path(folder) for folder in (spec.submodule_search_locations or []) if spec] if spec else []
    return next((home / "bin" / name for home in homes if (home / "bin" / name).is_file()), None)


def find_disassembler() -> pathlib.Path | None:
    """``cuobjdump``, or None unless the ``nvdisasm`` that it calls is found, too."""
    tool, called = find_tool("cuobjdump"), find_tool("nvdisasm")
    return tool if called is not None else None


def compile_source(source: str, architecture: str) -> Compiled | None:
    """Code for ``architecture`` (``sm_80``), from the cache if it was compiled before; None if there is no nvcc.

    Raises MoecError for an architecture that nvcc does not support; DefectError if nvcc rejects the source, since moec
    generated it.
    """
    nvcc = find_tool("nvcc")
    if nvcc is None:
        return None
    virtual = architecture.replace("sm_", "compute_")
    codes = f"[{architecture},{virtual}]" if is_for_newer_ones(architecture) else architecture
    options = [*_OPTIONS, f"-arch={virtual}"], ["-Xptxas", "-v", "-gencode", f"arch={virtual},code={codes}"]
    depends_on = [source, *options[0], *options[1], *(_version(tool) for tool in (nvcc, find_disassembler()))]
    depends_on += [f"{name}={os.environ.get(name, '')}" for name in _OPTION_VARIABLES]

    def make(_name: str) -> Files:
        compiled = _compile(nvcc, source, *options)
        texts = {name: text for name, text in vars(compiled).items() if name != _BINARY}
        return {_BINARY: compiled.binary, _TEXTS: json.dumps(texts).encode()}

    files = through_cache({"source": "\0".join(depends_on)}, make)["source"]
    return Compiled(files[_BINARY], **json.loads(files[_TEXTS]))


def _version(tool: pathlib.Path | None) -> str:
    return "" if tool is None else _run([str(tool), "--version"])


def _compile(nvcc: pathlib.Path, source: str, to_ptx: Sequence[str], to_binary: Sequence[str]) -> Compiled:
    with ScratchFolder() as folder:
        path = pathlib.Path(folder, SOURCE)
        path.write_text(source)
        binary, ptx = path.with_suffix(".fatbin"), path.with_suffix(".ptx")
        output = _run([str(nvcc), "-ptx", *to_ptx, path.name, "-o", ptx.name], folder)
        path.unlink()  # otherwise ptxas would record its modification time
        text, said = _assembled(nvcc, without_paths(ptx.read_text()), to_binary, binary)
        report = read_report(output + said, source)
        kernels, sass = kernels_of_ptx(text), _disassembled(binary)
        return Compiled(
            binary.read_bytes(),
            {name: kernel for name, (kernel, _) in kernels.items()},
            {name: code for name, (code, _) in sass.items()},
            {name: text + machine_code_in_words(*sass.get(name, ())[:1]) for name, text in report.resources.items()},
            report.advisories,
            {
                "ptx": {name: lines for name, (_, lines) in kernels.items()},
                "sass": {name: lines for name, (_, lines) in sass.items()},
            },
        )


def _assembled(nvcc: pathlib.Path, ptx: str, options: Sequence[str], binary: pathlib.Path) -> tuple[str, str]:
    """Assemble PTX into ``binary``. Return the PTX, in the oldest version that has all that it uses, and nvcc's
    output. ptxas refuses a text that uses more than its version has."""
    path = binary.with_suffix(".ptx")
    command = [str(nvcc), "-fatbin", "-lineinfo", *options, path.name, "-o", binary.name]
    oldest = _NEWER_PTX.sub(f".version {_OLDEST_PTX}", ptx)
    path.write_text(oldest)
    try:
        return oldest, _run(command, str(path.parent))
    except DefectError:
        if oldest == ptx:
            raise
    path.write_text(ptx)
    note = "ptxas warning : this PTX needs a driver of the CUDA that nvcc is from, on GPUs newer than its own\n"
    return ptx, note + _run(command, str(path.parent))


def without_paths(ptx: str) -> str:
    """PTX with file names instead of paths, times and sizes of sources. That makes the PTX, and the machine code made
    from it, the same wherever and whenever it is compiled."""
    named = _PTX_FILE.sub(lambda match: f'{match["number"]}"{pathlib.PurePath(match["path"]).name}"', ptx)
    return _PTX_MODULE.sub(lambda match: match[1] + 8 * f"{ord('0')},", named)


def machine_code_in_words(sass: str | None = None) -> str:
    """A line with counts of instructions, calls and local-memory accesses of a function; empty if there is no code."""
    if sass is None:
        return ""
    calls, spills = len(_CALL.findall(sass)), len(_SPILL.findall(sass))
    return f"{len(_INSTRUCTION.findall(sass))} instructions, {calls} calls, {spills} accesses to local memory\n"


def _disassembled(binary: pathlib.Path) -> dict[str, Lined]:
    """The machine code of each function, with the lines of the source that it comes from."""
    tool, called = find_disassembler(), find_tool("nvdisasm")
    if tool is None:
        return {}
    _run([str(tool), "-xelf", "all", binary.name], str(binary.parent))
    (code,) = binary.parent.glob("*.cubin")
    sections = sections_of(_run([str(called), "-gi", "-c", str(code)]))
    functions = {match["name"]: match[0] for match in _SASS_FUNCTION.finditer(_run([str(tool), "-sass", str(binary)]))}
    return {name: (text, lines_of_sass(text, sections.get(name, ""), SOURCE)) for name, text in functions.items()}


def _run(command: list[str], folder: str | None = None) -> str:
    """The output of a command of the CUDA toolkit, run in ``folder``. Raises MoecError for an unsupported architecture,
    DefectError for any other failure."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if _UNKNOWN in done.stderr:
        line = next(line for line in done.stderr.splitlines() if _UNKNOWN in line)
        raise MoecError(f"{command[0]}: {line}; install one of CUDA 13, or choose another --target")
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no reason"]
        )
        raise DefectError(f"{pathlib.Path(command[0]).name} refuses the generated CUDA C: {lines[0]}")
    return done.stdout + done.stderr
