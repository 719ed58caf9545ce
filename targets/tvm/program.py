"""From an ONNX IR model to a :class:`~moec.targets.base.Program` for any TVM target that yields object files."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import onnx_ir as ir
import tvm
from tvm import relax, tirx

from moec.targets.base import Candidate, KernelRecord, Program
from moec.targets.tvm import pipeline, sources
from moec.targets.tvm.heavy import HeavyOps
from moec.targets.tvm.lowering import Lowered, lower


def compile_program(
    model: ir.Model, heavy: HeavyOps, target: tvm.target.Target, name: str, requirements: Sequence[str]
) -> Program:
    """Lower, optimise and generate object files. Raises UnsupportedError naming node, operator and opset."""
    lowered = lower(model, heavy)
    module = pipeline.optimize(lowered.module, target)
    executable = pipeline.build(module, target)
    return Program(
        target=name,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        objects=object_files(executable),
        weights=lowered.weights,
        kernels=_kernel_records(lowered, module, executable),
        sources={"main.relax": module["main"].script()},
        requirements=list(requirements),
    )


def object_files(executable: relax.VMExecutable) -> dict[str, bytes]:
    """The object files of an executable by name, made without a C compiler or linker: the runtime links them."""
    with tempfile.TemporaryDirectory() as folder:
        collected = pathlib.Path(folder, "objects")

        def collect(_output: str, files: Sequence[str], **_options: object) -> None:
            collected.mkdir()
            for file in files:
                shutil.copy(file, collected)

        vars(collect)["object_format"] = "o"  # asked for by export_library
        executable.export_library(str(collected), fcompile=collect)
        return {file.name: file.read_bytes() for file in sorted(collected.iterdir())}


def _kernel_records(lowered: Lowered, module: tvm.IRModule, executable: relax.VMExecutable) -> list[KernelRecord]:
    kernels = {
        symbol.name_hint: function
        for symbol, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    libraries = list(executable.mod.imports)
    llvm = sources.llvm_of("\n".join(library.inspect_source("ll") for library in libraries), kernels)
    assembly = sources.assembly_of("\n".join(library.inspect_source("asm") for library in libraries), kernels)
    records = []
    for name, function in sorted(kernels.items()):
        record = lowered.kernels.get(name) or _generic_record(name)
        record.sources = {"tir": function.script(), "llvm": llvm.get(name, ""), "asm": assembly.get(name, "")}
        records.append(record)
    return records


def _generic_record(name: str) -> KernelRecord:
    reason = "elementwise, reduction or data movement: the default schedule"
    return KernelRecord(name, "generic", [], [Candidate("generic", True, reason, chosen=True)])
