"""From an ONNX IR model to a :class:`~moec.targets.base.Program` for any TVM target that yields object files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import onnx_ir as ir
import tvm
from tvm import relax

from moec.common.budgets import FUSED_LOADS, FUSED_REPEATS, Budget
from moec.common.errors import UnsupportedError
from moec.common.guards import parse_size
from moec.common.names import node_name, operator_name
from moec.common.specs import HeldState, LastTokens
from moec.runtime.loops import body_name
from moec.targets.base import INSTRUCTIONS, KernelRecord, Program
from moec.targets.host_program import HostProgram
from moec.targets.tvm.lowering.context import HeavyConverter
from moec.targets.tvm.lowering.held_states import Holding, renamed
from moec.targets.tvm.lowering.lowered import Lowered
from moec.targets.tvm.lowering.lowering import Sampler, lower
from moec.targets.tvm.onnx.converters import all_converters
from moec.targets.tvm.phases import pipeline
from moec.targets.tvm.phases.host_code import object_of
from moec.targets.tvm.phases.host_program import host_program
from moec.targets.tvm.phases.planned_memory import planned_blocks
from moec.targets.tvm.phases.records import kernel_records


@dataclasses.dataclass(frozen=True)
class Code:
    """All that is made of lowered functions alone, and is the same for programs that differ in their weights.

    ``names``: the kernels' names by the names they had when they were lowered; ``apart``: the names of nodes that a
    budget kept from being fused, with that budget; ``relax``: the optimised functions as text, by file name."""

    built: pipeline.Built
    kernels: Sequence[KernelRecord]
    names: Mapping[str, str]
    apart: Sequence[tuple[str, Budget]]
    relax: Mapping[str, str]

    @functools.cached_property
    def instructions(self) -> bytes:
        return instructions_of(self.built.executable)

    @functools.cached_property
    def host(self) -> HostProgram:
        return host_program(self.built.main, self.built.others)


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
    sampler: Sampler | None = None,
    codes: MutableMapping[str, Code] | None = None,
) -> Program:
    """Lower, optimise and generate object files. ``requirements`` are the features that any code for the target may
    use; kernels that are used add theirs. ``holding``: how it holds states, if it does. ``streams``: whether
    it can read experts from files when they are chosen; ``loops``: whether its host code can take the steps of loops;
    ``sampler``: its way to select tokens.
    ``codes``: codes of programs for this target and backend, which is read and extended.
    Raises UnsupportedError naming node, operator and opset."""
    lowered = lower(model, all_converters(heavy, takes_steps=loops), holding, streams, sampler)
    code = _code(lowered, target, backend, {} if codes is None else codes)
    generated = code.built.generated
    fused = {limit: [name for name, budget in code.apart if budget == limit] for limit in (FUSED_LOADS, FUSED_REPEATS)}
    beyond = {**lowered.beyond, **fused}
    unsteady = _unsteady(lowered) if lowered.lengths_in_memory else []
    needed = [*requirements, *(feature for kernel in code.kernels for feature in kernel.requirements)]
    return Program(
        target=target_name,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        objects={INSTRUCTIONS: code.instructions, **generated.objects},
        weights=lowered.weights,
        kernels=list(code.kernels),
        sources={**code.relax, **generated.files},
        requirements=list(dict.fromkeys(needed)),
        binary=generated.binary,
        warnings=[
            *(budget.remark(nodes) for budget, nodes in beyond.items() if nodes),
            *_without_graphs(lowered.fixed_lengths, unsteady),
            *generated.warnings,
        ],
        held=[renamed(state, code.names) for state in lowered.held],
        lengths_in_memory=lowered.lengths_in_memory,
        fixed_lengths=[*lowered.fixed_lengths, *(f"the state {state.input!r}" for state in unsteady)],
        streamed=lowered.streamed,
        tables=lowered.tables,
        blocks=planned_blocks(code.built.main, lowered.untold) if backend.rounds_storage else {},
        last=_renamed(lowered.last, code.names),
        host=lambda: code.host,
    )


def _renamed(last: LastTokens | None, names: Mapping[str, str]) -> LastTokens | None:
    """The description with the final name of its kernel."""
    return None if last is None else dataclasses.replace(last, sample=names.get(last.sample, last.sample))


def _unsteady(lowered: Lowered) -> list[HeldState]:
    """States that grow to a size that an input has, such as that of a mask. A captured run repeats that size, although
    it differs from step to step; the state's length alone is read in memory."""
    inputs = {spec.name: spec for spec in lowered.inputs}
    return [state for state in lowered.held if inputs[state.input].shape[state.axis] in parse_size(state.growth).names]


def _without_graphs(nodes: Sequence[str], unsteady: Sequence[HeldState]) -> list[str]:
    """The remarks about the nodes and states because of which no captured run serves several lengths of states."""
    remarks = []
    if nodes:
        named = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        remarks.append(f"{named}: computed with all of the past again in every step, and a graph repeats its length")
    if unsteady:
        state, count = unsteady[0], len(unsteady)
        named = f"the state {state.input!r}" + (f" and {count - 1} more" if count > 1 else "")
        remarks.append(f"{named}: growth by {state.growth} follows from the size of an input, which each step changes")
    return [f"sessions run without CUDA graphs: {remark}" for remark in remarks]


def _code(
    lowered: Lowered, target: tvm.target.Target, backend: pipeline.Backend, codes: MutableMapping[str, Code]
) -> Code:
    """The code of lowered functions: that in ``codes`` for equal ones, whose nodes have the same names, else new."""
    parts = {"main": lowered, **{body_name(number): body for number, body in enumerate(lowered.bodies)}}
    key = "\0".join(map(_identity, parts.values()))
    if key not in codes:
        codes[key] = _generated(parts, target, backend)
    return codes[key]


def _identity(part: Lowered) -> str:
    nodes = [(name, node_name(node), operator_name(node)) for name, node in part.nodes.items()]
    return f"{tvm.ir.save_json(part.module)}\0{nodes}\0{part.kernels}"


def _generated(parts: Mapping[str, Lowered], target: tvm.target.Target, backend: pipeline.Backend) -> Code:
    with _integers_in_range():
        optimized: dict[str, pipeline.Optimized] = {}
        for name, part in parts.items():
            used = [*parts, *(kernel for other in optimized.values() for kernel in other.names.values())]
            optimized[name] = pipeline.optimize(part.module, target, part.nodes, backend, used)
        modules = {name: part.module for name, part in optimized.items()}
        built = pipeline.build(modules.pop("main"), target, backend, modules)
    return Code(
        built,
        [
            record
            for name, part in parts.items()
            for record in kernel_records(part.kernels, optimized[name], built.generated)
        ],
        optimized["main"].names,
        [pair for part in optimized.values() for pair in part.apart.items()],
        {f"{name}.relax": part.module["main"].script() for name, part in optimized.items()},
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
