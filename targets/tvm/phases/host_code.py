"""Code for a processor, kernel by kernel: LLVM's text, assembly, and the object file that is assembled from it.

LLVM generates machine code once, as text with the lines that it comes from. The object file is made by LLVM's assembler
from that text without the lines, which takes a twentieth of the time that generating the code again would.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.common.scratch import ScratchFolder
from moec.targets.kernel_cache import Files, through_cache
from moec.targets.tvm.phases.line_tables import with_subprograms, without_lines
from moec.targets.tvm.phases.schedule import GENERIC
from moec.targets.tvm.phases.sources import assembly_of, llvm_of
from moec.targets.tvm.text.statement_lines import numbered

OBJECT, LLVM, ASSEMBLY, STATEMENTS = "o", "ll", "s", "statements"
"""The files of a kernel. The last has, by name of a text, the numbers of the statements that its lines come from."""
MAPPING_LEVEL = 2
"""LLVM's level of optimisation for kernels that only move or map elements. Level 3 unrolls their loops of known length
completely: of ``sigmoid(x) * x * y`` over rows of 24 numbers it makes four times the code in four times the time, which
runs at half the speed. Maxima of rows of 64 numbers are twice as fast at level 3."""
_LARGEST_OBJECT = 16 << 20
"""Bytes that an object file may have: a hundred times those of large kernels."""
_LAYOUT = re.compile(r"^target [^\n]*$", re.MULTILINE)
_TARGET = re.compile(r'^!\d+ = (!\{i32 \d+, !"tvm_target", [^\n]*\})$', re.MULTILINE)
_ESCAPED = str.maketrans({"\\": r"\5C", '"': r"\22", "\n": r"\0A"})


def compile_kernels(module: tvm.IRModule, target: tvm.target.Target, pipeline: str) -> dict[str, Files]:
    """Object file, LLVM IR and assembly of every kernel, by name. ``pipeline``: name of the phases from TIR to code."""
    functions = dict(sorted((symbol.name_hint, function) for symbol, function in module.functions.items()))
    targets = {False: target, True: tvm.target.Target({**target.export(), "opt-level": MAPPING_LEVEL})}
    surroundings = {low: _surroundings(low_target, pipeline) for low, low_target in targets.items()}
    mapping = {name: is_mapping(function) for name, function in functions.items()}
    made_of = {
        name: f"{surroundings[mapping[name]]}\0{tvm.ir.save_json(function)}" for name, function in functions.items()
    }

    def make(name: str) -> Files:
        module = tvm.IRModule({name: numbered(functions[name])})
        library = tirx.build(module, target=targets[mapping[name]], pipeline=pipeline)
        llvm = with_subprograms(library.inspect_source("ll"))
        assembly = _module_of(llvm).inspect_source("asm")
        texts = {LLVM: llvm_of(llvm, name), ASSEMBLY: assembly_of(assembly, name)}
        return {
            OBJECT: assemble(without_lines(assembly), llvm),
            **{form: lined.text.encode() for form, lined in texts.items()},
            STATEMENTS: json.dumps({form: lined.statements for form, lined in texts.items()}).encode(),
        }

    return through_cache(made_of, make)


def is_mapping(function: tirx.PrimFunc) -> bool:
    """Whether a kernel is a generic one without reductions, or a function of sizes."""
    attributes = function.attrs or {}
    if attributes.get("tirx.is_scheduled") and not attributes.get(GENERIC):
        return False
    kinds: set[int] = set()
    tvm_ffi.structural_walk(function.body, [(tirx.IterVar, lambda variable: kinds.add(variable.iter_type))])
    return kinds <= {tirx.IterVar.DataPar}


def compile_host(module: tvm.IRModule, target: tvm.target.Target) -> bytes:
    """The object file of functions that are already lowered for LLVM."""
    functions = dict(sorted(module.functions.items(), key=lambda item: item[0].name_hint))
    module = tvm.IRModule(functions, module.attrs)
    made_of = "\0".join([_surroundings(target, "none"), *map(tvm.ir.save_json, functions.values())])
    files = through_cache({"host": made_of}, lambda _name: {OBJECT: object_of(code_of(module, target))})
    return files["host"][OBJECT]


def assemble(assembly: str, llvm: str) -> bytes:
    """The object file of a text in assembly. ``llvm``: the module that it was generated from, which names the
    processor. Raises TVMError where LLVM does not understand the text."""
    return compiled_text(f'module asm "{assembly.translate(_ESCAPED)}"\n', llvm)


def compiled_text(text: str, llvm: str) -> bytes:
    """The object file of a text in LLVM's language, for the processor that the module ``llvm`` was generated for.
    Raises TVMError where LLVM does not understand the text."""
    target = _TARGET.search(llvm)
    flags = f"!llvm.module.flags = !{{!0}}\n!0 = {target[1]}\n" if target else ""
    return object_of(_module_of("\n".join(_LAYOUT.findall(llvm)) + "\n" + text + flags))


def _module_of(llvm: str) -> Any:
    """TVM's module with the code of a text in LLVM's language."""
    with ScratchFolder() as folder:
        path = pathlib.Path(folder, "kernel.ll")
        path.write_text(llvm)
        return tvm.runtime.load_module(str(path))


def object_of(module: Any) -> bytes:
    """The object file of one of TVM's modules. Raises OSError where the system allows no file of that size."""
    with _file_for_llvm() as path:
        module.write_to_file(path, OBJECT)
        return pathlib.Path(path).read_bytes()


@contextlib.contextmanager
def _file_for_llvm() -> Iterator[str]:
    """Context with the path of a file in memory, where the system has such files (Linux): LLVM ends the process when a
    file cannot be written, as on a full disk."""
    if not hasattr(os, "memfd_create"):
        with ScratchFolder() as folder:
            yield f"{folder}/module.o"
        return
    with open(os.memfd_create("object file"), "wb") as file:
        file.truncate(_LARGEST_OBJECT)  # fails where a limit of sizes (ulimit -f) would end the process
        yield f"/proc/self/fd/{file.fileno()}"


@functools.cache
def _build() -> Any:
    return tvm.get_global_func("target.build.llvm")


def code_of(module: tvm.IRModule, target: tvm.target.Target) -> Any:
    """TVM's module with the code of functions that are already lowered for LLVM."""
    return _build()(module, target)


def _surroundings(target: tvm.target.Target, pipeline: str) -> str:
    """Settings that the generated code depends on besides its input: target, host, pipeline and pass context."""
    context = tvm.transform.PassContext.current()
    return "\0".join([str(target), str(target.host), pipeline, str(context.opt_level), str(dict(context.config))])
