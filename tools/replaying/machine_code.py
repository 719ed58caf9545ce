"""Texts in the place of machine code, so that no compiler runs: what LLVM and nvcc would be given is what they decide.

Everything before stays as it is. Each function that calls a compiler is named once, here; a function that has moved is
an AttributeError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def texts_instead() -> Iterator[None]:
    """In this block, compiled programs hold texts: of each kernel for a processor and of a GPU's host code what LLVM
    would be given, of the program its instructions. A GPU's kernels stay CUDA C."""
    from moec.targets.tvm import tvm  # isort: skip (first, so that torch is not imported)
    from moec.targets.cuda import pipeline as cuda
    from moec.targets.tvm import program
    from moec.targets.tvm.phases import host_code, pipeline, team

    def kernels(module: tvm.IRModule, target: tvm.target.Target, name: str) -> dict[str, dict[str, bytes]]:
        phases, finish, _ = tvm.tirx.get_tir_pipeline(name)
        bound = tvm.tirx.transform.BindTarget(target.with_host(target))
        texts = {}
        for symbol, function in module.functions.items():
            lowered = finish()(phases(bound(tvm.IRModule({symbol: function}))))
            files = {host_code.OBJECT: b"", host_code.LLVM: text_of(lowered), host_code.ASSEMBLY: b""}
            statements = {form: [0] * len(text.splitlines()) for form, text in files.items()}
            texts[symbol.name_hint] = {**files, host_code.STATEMENTS: json.dumps(statements).encode()}
        return texts

    build = pipeline.build

    def build_texts(module: tvm.IRModule, *others: Any) -> Any:
        built = build(module, *others)
        executable, files = built.executable, built.generated.files
        files["instructions.txt"] = f"{executable.as_text()}\n{executable.stats()}\n"
        files["constants.txt"] = constants_of(module)
        return built

    with contextlib.ExitStack() as patches:
        for module, name, instead in (
            (host_code, "compile_kernels", kernels),
            (host_code, "compile_host", lambda module, target: text_of(module)),
            (pipeline, "build", build_texts),
            (program, "instructions_of", lambda executable: b""),
            (team, "compiled_text", lambda text, llvm: text.encode()),
            (cuda, "compile_source", lambda source, architecture: None),
        ):
            patches.enter_context(mock.patch.object(module, name, instead))
        yield


@contextlib.contextmanager
def passes_alone() -> Iterator[None]:
    """In this block, every target makes nothing of a model."""
    from moec import targets
    from moec.common.specs import tensor_specs
    from moec.targets.base import Projects

    class Nothing:
        def compile(self, model: Any) -> Projects:
            return Projects("passes", tensor_specs(model.graph.inputs), tensor_specs(model.graph.outputs), [])

    with mock.patch.object(targets, "get_all", lambda name, options: [Nothing()]):
        yield


def text_of(module: Any) -> bytes:
    """All functions of a module, by name."""
    functions = sorted(module.functions.items(), key=lambda item: item[0].name_hint)
    return "".join(f"# {symbol.name_hint}\n{function.script()}\n" for symbol, function in functions).encode()


def constants_of(module: Any) -> str:
    """A line for each tensor that is a constant of ``main``, in the order of use, which texts leave out: its type, its
    shape, and a digest."""
    from tvm import ir, relax

    lines: list[str] = []

    def visit(expression: Any) -> None:
        if isinstance(expression, ir.GenericConst):
            array = expression.value.numpy()
            lines.append(f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}\n")

    relax.analysis.post_order_visit(module["main"], visit)
    return "".join(lines)
