"""From an ONNX IR model to a :class:`~moec.targets.base.Program` for any TVM target that yields object files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import tvm
from tvm import relax

from moec.common.budgets import FUSED_LOADS, FUSED_REPEATS
from moec.common.errors import UnsupportedError
from moec.runtime.loops import body_name
from moec.targets.base import INSTRUCTIONS, Program
from moec.targets.tvm.lowering.context import HeavyConverter
from moec.targets.tvm.lowering.held_states import Holding, renamed
from moec.targets.tvm.lowering.lowering import lower
from moec.targets.tvm.onnx.converters import all_converters
from moec.targets.tvm.phases import pipeline
from moec.targets.tvm.phases.host_code import object_of
from moec.targets.tvm.phases.host_program import host_program
from moec.targets.tvm.phases.records import kernel_records


def compile_program(
    model: ir.Model,
    heavy: Mapping[str, HeavyConverter],
    target: tvm.target.Target,
    target_name: str,
    requirements: Sequence[str],
    backend: pipeline.Backend = pipeline.CPU,
    holding: Holding | None = None,
    streams: bool = False,
    loops: bool = False,
) -> Program:
    """Lower, optimise and generate object files. ``requirements`` are the features that any code for the target may
    use; kernels that are used add theirs. ``holding``: how it holds states, if it does. ``streams``: whether
    it can read experts from files when they are chosen; ``loops``: whether its host code can take the steps of loops.
    Raises UnsupportedError naming node, operator and opset."""
    lowered = lower(model, all_converters(heavy, takes_steps=loops), holding, streams)
    parts = {"main": lowered, **{body_name(number): body for number, body in enumerate(lowered.bodies)}}
    with _integers_in_range():
        optimized: dict[str, pipeline.Optimized] = {}
        for name, part in parts.items():
            used = [*parts, *(kernel for other in optimized.values() for kernel in other.names.values())]
            optimized[name] = pipeline.optimize(part.module, target, part.nodes, backend, used)
        modules = {name: part.module for name, part in optimized.items()}
        built = pipeline.build(modules.pop("main"), target, backend, modules)
    generated = built.generated
    apart = [(name, budget) for part in optimized.values() for name, budget in part.apart.items()]
    fused = {limit: [name for name, budget in apart if budget == limit] for limit in (FUSED_LOADS, FUSED_REPEATS)}
    beyond = {**lowered.beyond, **fused}
    kernels = [
        record for name, part in parts.items() for record in kernel_records(part.kernels, optimized[name], generated)
    ]
    needed = [*requirements, *(feature for kernel in kernels for feature in kernel.requirements)]
    return Program(
        target=target_name,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        objects={INSTRUCTIONS: instructions_of(built.executable), **generated.objects},
        weights=lowered.weights,
        kernels=kernels,
        sources={
            **{f"{name}.relax": part.module["main"].script() for name, part in optimized.items()},
            **generated.files,
        },
        requirements=list(dict.fromkeys(needed)),
        binary=generated.binary,
        warnings=[*(budget.remark(nodes) for budget, nodes in beyond.items() if nodes), *generated.warnings],
        held=[renamed(state, optimized["main"].names) for state in lowered.held],
        streamed=lowered.streamed,
        last=lowered.last,
        host=lambda: host_program(built.with_memory),
    )


@contextlib.contextmanager
def _integers_in_range() -> Iterator[None]:
    """Context that turns TVM's error about combined constants into an UnsupportedError.

    TVM folds constants such as those of ``(x * a) * a`` and does not wrap around as a processor would."""
    try:
        yield
    except ValueError as error:
        match = re.search(r"Literal value (-?\d+) exceeds range of (\w+)", str(error))
        if match is None:
            raise
        raise UnsupportedError(
            f"constants of integer arithmetic combine to {match[1]}, which {match[2]} cannot hold; compute them in "
            "the model"
        ) from error


def instructions_of(executable: relax.VMExecutable) -> bytes:
    """The object file of an executable's instructions, and of all that its library imports."""
    (library,) = executable.mod.imports
    target = library.get_function("_get_target_string")()
    return object_of(tvm.get_global_func("runtime.ModulePackImportsToLLVM")(executable.mod, False, target, ""))
