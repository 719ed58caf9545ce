"""Compilation of a project's sources, or their instrumented copy, to a program that simulates it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal

from moec.common.errors import MoecError
from moec.common.scratch import ScratchFolder
from moec.targets.build_cache import cached
from moec.targets.hls import hardware
from moec.targets.hls.hardware.configuration import Configuration

Mode = Literal["functional", "timed"]

_HERE = pathlib.Path(__file__).parent
_FIBERS = _HERE.parent / "fibers"
_STREAMS = {"functional": pathlib.Path(hardware.__file__).parents[1] / "library" / "sim", "timed": _HERE / "timed"}
"""Folders of the models of ``hls::stream``: the one that projects carry, and the one with clocks."""
_RUNTIME = _STREAMS["timed"] / "runtime" / "runtime.cpp"
_AP_TYPES = pathlib.PurePosixPath("templates/vivado/ap_types")
_LANGUAGE = ("-std=c++17", "-w", "-fno-strict-aliasing")
_USUAL = ("-O1",)
"""Options for which the prelude is precompiled."""
_PRELUDE = _HERE / "prelude.h"
_ERROR = re.compile(r"^([^:\n]+:\d+)(?::\d+)?: (?:fatal )?error: (.*)", re.MULTILINE)


def ap_types() -> pathlib.Path:
    """The folder of the open-source ``ap_int.h``, which the package hls4ml contains. Raises MoecError where it is
    missing."""
    spec = importlib.util.find_spec("hls4ml")
    folders = [pathlib.Path(folder) / _AP_TYPES for folder in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        if (folder / "ap_int.h").is_file():
            return folder
    raise MoecError(
        "the headers ap_int.h and friends were not found; the simulation takes them from the package hls4ml: "
        "pip install 'moec[hls]', or pip install --no-deps hls4ml"
    )


def find_compiler(name: str) -> str:
    compiler = shutil.which(name)
    if compiler is None:
        raise MoecError(f"{name} was not found; simulating a project needs a C++ compiler: install one")
    return compiler


def is_gcc(compiler: str) -> bool:
    return "Free Software Foundation" in _version(compiler)


def compile_simulation(
    texts: Mapping[str, str],
    configuration: Configuration,
    mode: Mode,
    *,
    compiler: str = "g++",
    options: Sequence[str] = (),
    linked: Sequence[str] = (),
) -> pathlib.Path:
    """Compile a project's C++ files, given as texts by path, unless the program is in the user's cache; returns its
    path. ``options``: for the sources alone; ``linked``: for the linker.

    Raises MoecError where there is no compiler, where ap_int.h is missing, and where the sources do not compile.
    """
    command = [find_compiler(compiler), *_LANGUAGE, *options, f"-I{_STREAMS[mode]}"]
    parts = [*texts, *texts.values(), repr(configuration), mode, *command, *linked, _versions(command[0])]
    return cached("hls", f"{_digest(*parts)}", lambda path: _compile(texts, configuration, mode, command, linked, path))


def _compile(
    texts: Mapping[str, str],
    configuration: Configuration,
    mode: Mode,
    command: Sequence[str],
    linked: Sequence[str],
    program: pathlib.Path,
) -> None:
    with ScratchFolder() as name:
        folder = pathlib.Path(name)
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        prelude = _prelude(command)
        simulation = ["-include", "simulation.h"] if mode == "timed" else []
        headers = ["-isystem", str(ap_types())]
        objects = []
        for path in (*configuration.sources, *configuration.testbench):
            objects.append(str(folder / f"{len(objects)}.o"))
            start = [*command, *prelude, *simulation, *configuration.flags, *headers]
            _run([*start, "-c", path, "-o", objects[-1]], folder)
        runtime = [str(_runtime(command[0]))] if mode == "timed" else []
        _run([command[0], *linked, *objects, *runtime, "-o", str(program)], folder)


def _prelude(command: Sequence[str]) -> list[str]:
    """Options that include a precompiled header, which cuts compilation to a third of the time and takes 97 MB; none
    for options other than the usual ones, or another compiler than g++."""
    options = [option for option in command[1:] if not option.startswith("-I")]
    if options != [*_LANGUAGE, *_USUAL] or not is_gcc(command[0]):
        return []
    start = [command[0], *options, "-isystem", str(ap_types()), "-x", "c++-header", str(_PRELUDE), "-o"]
    name = f"{_digest(*start, _versions(command[0]))}.h.gch"
    precompiled = cached("hls", name, lambda path: _run([*start, str(path)], path.parent))
    return ["-include", str(precompiled.with_suffix(""))]


def _runtime(compiler: str) -> pathlib.Path:
    """The object file of the simulation's own functions, compiled once."""
    start = [compiler, "-std=c++17", "-O2", "-c", str(_RUNTIME), "-o"]
    return cached(
        "hls", f"{_digest(*start, _versions(compiler))}.o", lambda path: _run([*start, str(path)], path.parent)
    )


def _run(command: Sequence[str], folder: pathlib.Path) -> None:
    environment = {**os.environ, "LC_ALL": "C"}  # messages with plain quotes
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        match = _ERROR.search(done.stderr)
        message = f"{match[1]}: {match[2]}" if match else done.stderr.strip()[-500:]
        raise MoecError(f"the project does not compile for simulation: {message}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


@functools.cache
def _versions(compiler: str) -> str:
    """A digest of everything that a program is made from, except the project."""
    digest = hashlib.sha256()
    for folder in (_HERE, _FIBERS, *_STREAMS.values(), ap_types()):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest() + _version(compiler)
