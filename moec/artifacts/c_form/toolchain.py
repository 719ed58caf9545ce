"""C compilers: find one for a processor, and build libraries with it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from moec.common.errors import MoecError, UnsupportedError
from moec.common.scratch import ScratchFolder
from moec.targets.kernel_cache import through_cache

_PREFIXES = {"x86_64": "x86_64-linux-gnu-", "aarch64": "aarch64-linux-gnu-"}
_PACKAGES = {"x86_64": "gcc-x86-64-linux-gnu", "aarch64": "gcc-aarch64-linux-gnu"}
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}
_OPTIONS = ("-std=gnu11", "-fPIC", "-fwrapv", "-fvisibility=hidden", "-Wall", "-Werror=implicit-function-declaration")
_RUNTIME_LEVEL, _PROGRAM_LEVEL = "-O2", "-O0"
"""Levels of optimisation. A program is one long row of calls: level 1 takes six times as long for it, and saves 0.3 us
in a run of 72 kernels."""


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """A C compiler, with its options, and the tools that make static libraries."""

    compiler: tuple[str, ...]
    archiver: str
    copier: str


def find_toolchain(processor: str) -> Toolchain:
    """Find the tools for a processor (``x86_64``, ``aarch64``): those in the environment variables CC, AR and OBJCOPY,
    unless CC is for another processor, or else those on PATH. Raises MoecError that says what to install,
    UnsupportedError for other processors."""
    if processor not in _PREFIXES:
        raise UnsupportedError(f"--form c is for {' and '.join(_PREFIXES)} with Linux, not for {processor}")
    here = platform.machine().lower()
    is_native = _SAME.get(here, here) == processor
    prefixes = ("", _PREFIXES[processor]) if is_native else (_PREFIXES[processor],)
    hint = f"on Debian: apt-get install {'gcc binutils' if is_native else _PACKAGES[processor]}"
    own = tuple(shlex.split(os.environ.get("CC", "")))
    own = own if own and _is_for(own, processor) else ()
    variables = os.environ if own or is_native else {}
    compilers = [f"{prefix}{name}" for prefix in prefixes for name in ("cc", "gcc", "clang")]

    def tool(name: str) -> str:
        names = [f"{prefix}{name}" for prefix in prefixes]
        return variables.get(name.upper()) or _found(names, f"an {name}", name.upper(), processor, hint)

    compiler = own or (_found(compilers, "a C compiler", "CC", processor, hint),)
    return Toolchain(compiler, tool("ar"), tool("objcopy"))


def _is_for(compiler: Sequence[str], processor: str) -> bool:
    """Whether a compiler makes code for the processor; also where it does not tell."""
    try:
        done = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True, check=False)
    except OSError:
        return True
    return not done.stdout.startswith(tuple(set(_PREFIXES) - {processor}))


def _found(names: Sequence[str], what: str, variable: str, processor: str, hint: str) -> str:
    path = next((path for path in map(shutil.which, names) if path), None)
    if path is None:
        raise MoecError(
            f"--form c needs {what} for {processor}, and none of {', '.join(names)} is on PATH; {hint}, or name one "
            f"in the environment variable {variable}"
        )
    return path


@dataclasses.dataclass(frozen=True)
class Libraries:
    """A shared library and a static one."""

    shared: bytes
    static: bytes


def build(
    tools: Toolchain, name: str, program: str, library: Mapping[str, bytes], objects: Mapping[str, bytes]
) -> Libraries:
    """Build the libraries of the program ``name``. ``program``: its generated text; ``library``: the sources of the
    runtime, by file name; ``objects``: object files of kernels."""
    sources = [file for file in sorted(library) if file.endswith(".c")]
    version = end_of([*tools.compiler, "--version"]).stdout
    made_of = f"{tools.compiler}\0{version}\0{_OPTIONS}{_RUNTIME_LEVEL}\0{sorted(library.items())}"

    def compile_runtime(_name: str) -> dict[str, bytes]:
        with ScratchFolder() as scratch:
            folder = pathlib.Path(scratch)
            _write(folder, library)
            for source in sources:
                _compile(tools, folder, source, _RUNTIME_LEVEL)
            return {f"{source}.o": (folder / f"{source}.o").read_bytes() for source in sources}

    runtime = through_cache({"libmoec": made_of}, compile_runtime)["libmoec"]
    with ScratchFolder() as scratch:
        folder = pathlib.Path(scratch)
        _write(folder, {**library, **runtime, f"{name}.c": program.encode()})
        _write(folder / "kernels", objects)
        _compile(tools, folder, f"{name}.c", _PROGRAM_LEVEL)
        kernels = [f"kernels/{file}" for file in objects]
        return Libraries(
            _link(tools, folder, name, [f"{name}.c.o", *runtime, *kernels]),
            _archive(tools, folder, name, list(runtime), kernels),
        )


def _write(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)


def _compile(tools: Toolchain, folder: pathlib.Path, source: str, level: str) -> None:
    run_tool(folder, [*tools.compiler, *_OPTIONS, level, "-c", source, "-o", f"{source}.o"])


def _link(tools: Toolchain, folder: pathlib.Path, name: str, files: Sequence[str]) -> bytes:
    """Link a shared library that shows the functions of moec.h and the program alone, and that uses its own."""
    (folder / "exports").write_text(f"{{ global: {name}_program; moec_*; local: *; }};\n")
    shared = f"lib{name}.so"
    options = [
        "-shared",
        f"-Wl,-soname,{shared}",
        "-Wl,--version-script,exports",
        "-Wl,-z,noexecstack,--no-undefined,-s",
    ]
    run_tool(folder, [*tools.compiler, *options, "-o", shared, *files, "-lm", "-lpthread"])
    return (folder / shared).read_bytes()


def _archive(
    tools: Toolchain, folder: pathlib.Path, name: str, runtime: Sequence[str], kernels: Sequence[str]
) -> bytes:
    """Archive the runtime, and program and kernels as one object that shows the program alone: two programs may have
    kernels of one name."""
    static, whole = f"lib{name}.a", f"{name}.o"
    run_tool(folder, [*tools.compiler, "-r", "-nostdlib", "-o", whole, f"{name}.c.o", *kernels])
    run_tool(folder, [tools.copier, f"--keep-global-symbol={name}_program", whole])
    run_tool(folder, [tools.archiver, "rcsD", static, whole, *runtime])
    return (folder / static).read_bytes()


def run_tool(folder: pathlib.Path, command: Sequence[str]) -> None:
    """Run a command that builds something. Raises MoecError, with the first error that it says, where it fails."""
    done = end_of(command, folder)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        said = lines[0] if lines else done.stderr.strip()[-300:]
        raise MoecError(f"the C library cannot be built: {' '.join(command[:3])} ...: {said}")


def end_of(
    command: Sequence[str], folder: pathlib.Path | str = ".", text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with ``text`` as its input. Raises MoecError where it cannot be started."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, input=text, check=False)
    except OSError as error:
        raise MoecError(f"the C library cannot be built: {command[0]}: {error.strerror or error}") from error
