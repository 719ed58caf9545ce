"""The CUDA backend of the TVM pipeline: schedules, the phases from TIR to CUDA C, and the source text of each
kernel."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx.build import split_host_device_mods

from moec.targets.cuda.early_launches import (
    AskForEarlyLaunches,
    LeaveOutBeforeWait,
    WaitForKernelsBefore,
    has_early_launches,
)
from moec.targets.cuda.launches import LaunchRecorder, facts_of, with_registers
from moec.targets.cuda.nvcc import MISSING, PREAMBLE, SOURCE, compile_source
from moec.targets.cuda.text import finished
from moec.targets.cuda.text.line_marks import with_marks, without_marks
from moec.targets.cuda.text.syntax import HELPER, KERNEL
from moec.targets.gpu.kernels.lower_by_form import LowerByForm
from moec.targets.gpu.lowering.join_kernels import join_kernels
from moec.targets.gpu.lowering.launch_conditions import ApplyLaunchConditions
from moec.targets.gpu.lowering.schedule import ScheduleForGpu, scheduled_kernel_phases
from moec.targets.tvm.phases import host_code
from moec.targets.tvm.phases.pipeline import Backend, Generated
from moec.targets.tvm.phases.structures import TIR, LineOrigins
from moec.targets.tvm.text.statement_lines import (
    FUNCTION,
    StatementTable,
    forgotten,
    numbered,
    statements_of,
    with_found_numbers,
)
from moec.targets.tvm.text.unused_names import DropUnusedNames

_PROTOTYPE = re.compile(r'^extern "C" __global__ ', re.MULTILINE)
_DEVICE_FUNCTION = re.compile(r"_kernel(_\d+)?$")
"""The suffix that TVM adds to a function's name for its parts that run on the device."""


_STATEMENTS: ContextVar[list[int] | None] = ContextVar("statements", default=None)
"""A list that gets the numbers of the statements which the lines of CUDA C come from."""


@tvm.register_global_func("tvm_callback_cuda_postproc", override=True)
def _finish_text(source: str, _target: tvm.target.Target) -> str:
    """The final text of generated CUDA C. TVM calls this before it compiles or stores the text."""
    text, numbers = without_marks(finished(source))
    statements = _STATEMENTS.get()
    if statements is not None:
        statements[:] = numbers
    return text


def generated_with_statements(device: tvm.IRModule, target: tvm.target.Target) -> tuple[Any, list[int]]:
    """TVM's module with the code of a device's functions, and for each line of its source the number of the statement
    that it comes from, 0 for none."""
    statements: list[int] = []
    token = _STATEMENTS.set(statements)
    try:
        return tvm.get_global_func("target.build.cuda")(device, target), statements
    finally:
        _STATEMENTS.reset(token)


def kernel_phases(architecture: str) -> list[tvm.transform.Pass]:
    """The phases that split TIR into functions of host and device and lower both."""
    loops = tirx.transform
    early = has_early_launches(architecture)
    return [
        LowerByForm(scheduled_kernel_phases()),
        *([AskForEarlyLaunches()] if early else []),
        # For each kernel, a function of the host checks the arguments and launches the device's function.
        loops.SplitHostDevice(),
        *([WaitForKernelsBefore()] if early else []),
        LeaveOutBeforeWait(),
        ApplyLaunchConditions(),
        loops.MakePackedAPI(),
        loops.FP8StorageLegalize(),
        loops.BF16StorageLegalize(),
    ]


def _cuda_code(
    architecture: str, recorder: LaunchRecorder, module: tvm.IRModule, target: tvm.target.Target
) -> Generated:
    functions = {symbol: numbered(function) for symbol, function in module.functions.items()}
    tables = {symbol.name_hint: statements_of(function) for symbol, function in functions.items()}
    module = tvm.IRModule({symbol: forgotten(function) for symbol, function in functions.items()}, module.attrs)
    host, device = lowered_kernels(module, target)
    objects = {"kernels.o": host_code.compile_host(host, target.host)}
    if device is None:
        return Generated(objects, {"cuda": {}})
    kernels = [symbol.name_hint for symbol in module.functions]
    code, statements = generated_with_statements(_marked(device, tables), target)
    source = code.inspect_source()
    places = source_lines(source, kernels)
    launches = {kernel: recorder.launches.get(kernel, []) for kernel in kernels}
    generated = Generated(
        objects,
        {"cuda": sources_of(source, kernels)},
        launches=launches,
        origins={"cuda": {name: LineOrigins(TIR, _statements_at(statements, lines)) for name, lines in places.items()}},
        files={PREAMBLE: preamble_of(source), SOURCE: source},
        device=code,
    )
    compiled = compile_source(source, architecture)
    resources: dict[str, str] = {}
    if compiled is None:
        generated.warnings.append(MISSING)
    else:
        generated.warnings.extend(
            f"nvcc for {architecture}: {name and name + ': '}{advice}"
            for name, several in compiled.advisories.items()
            for advice in several
        )
        resources = {
            name: text + "".join(f"{advice}\n" for advice in compiled.advisories.get(name, ()))
            for name, text in compiled.resources.items()
        }
        for form, functions in (("ptx", compiled.ptx), ("sass", compiled.sass), ("resources", resources)):
            if functions:
                generated.sources[form] = _by_kernel(functions, kernels)
            if functions and form in compiled.lines:
                generated.origins[form] = _origins_in_source(functions, compiled.lines[form], source, places)
    facts = {kernel: facts_of(launches[kernel], resources) for kernel in kernels}
    launches = {kernel: with_registers(several, resources) for kernel, several in launches.items()}
    binary = None if compiled is None else compiled.binary
    return dataclasses.replace(generated, facts=facts, launches=launches, binary=binary)


def lowered_kernels(module: tvm.IRModule, target: tvm.target.Target) -> tuple[tvm.IRModule, tvm.IRModule | None]:
    """The functions of the host, and those of the device (None if there are none), lowered for code generation."""
    sequence = tvm.ir.transform.Sequential
    module = sequence([tirx.transform.BindTarget(target), *kernel_phases(str(target.attrs["arch"]))])(module)
    host, devices = split_host_device_mods(module)
    # No simplification here: it would replace names by the expressions that are bound to them.
    finish_device = sequence([tirx.transform.LowerWarpMemory(), tirx.transform.LowerIntrin(), DropUnusedNames()])
    return s_tir.pipeline.finalize_host_passes()(host), next(
        (finish_device(device) for device in devices.values()), None
    )


def _marked(device: tvm.IRModule, tables: Mapping[str, StatementTable | None]) -> tvm.IRModule:
    """The functions of the device with marks of the statements that they come from. ``tables``: by kernel."""
    functions: dict[tvm.ir.GlobalVar, tirx.PrimFunc] = {}
    for symbol, function in device.functions.items():
        table = tables[_DEVICE_FUNCTION.sub("", symbol.name_hint)]
        functions[symbol] = function if table is None else with_marks(with_found_numbers(function, table))
    return tvm.IRModule(functions, device.attrs)


def _statements_at(statements: Sequence[int], lines: Sequence[int]) -> list[int]:
    """The numbers of the statements at lines of the source; the function's for lines of no statement, 0 for line 0."""
    return [line and (statements[line - 1] or FUNCTION) for line in lines]


def _origins_in_source(
    functions: Mapping[str, str],
    lines: Mapping[str, Sequence[int]],
    source: str,
    places: Mapping[str, Sequence[int]],
) -> dict[str, LineOrigins]:
    """The lines of CUDA C that the lines of kernels' texts come from; lines without such come from the function's head.

    ``functions``: the texts by function; ``lines``: of each the lines of the source; ``places``: of each kernel the
    lines of the source that its CUDA C has."""
    in_source = ["", *source.splitlines()]
    parts: dict[str, list[list[int]]] = {kernel: [] for kernel in places}
    for function, text in functions.items():
        kernel = _DEVICE_FUNCTION.sub("", function)
        if kernel not in places:
            continue
        own = {place: line for line, place in enumerate(places[kernel], 1) if place}
        head = next((line for place, line in own.items() if f" {function}(" in in_source[place]), 1)
        pairs = zip(text.splitlines(), lines[function], strict=True)
        parts[kernel].append([own.get(place, head) if line.strip() else 0 for line, place in pairs])
    return {
        kernel: LineOrigins("cuda", [number for numbers in several for number in (0, *numbers)][1:])
        for kernel, several in parts.items()
    }


def _by_kernel(functions: dict[str, str], kernels: Sequence[str]) -> dict[str, str]:
    """The texts by kernel: those of its functions on the device, joined."""
    parts: dict[str, list[str]] = {kernel: [] for kernel in kernels}
    for name, text in functions.items():
        parts.get(_DEVICE_FUNCTION.sub("", name), []).append(text)
    return {kernel: "\n".join(texts) for kernel, texts in parts.items()}


def preamble_of(text: str) -> str:
    """The text before the helpers and the kernels: headers, and types that TVM defines."""
    begins = [match.start() for pattern in (HELPER, KERNEL, _PROTOTYPE) for match in pattern.finditer(text)]
    return text[: min(begins, default=len(text))].strip() + "\n"


def source_lines(text: str, kernels: Sequence[str]) -> dict[str, list[int]]:
    """The lines of the source, from 1, that are each kernel's CUDA C: its functions, preceded by the helpers that they
    call. 0 for the empty lines between them."""
    helpers = {match["name"]: match[0] for match in HELPER.finditer(text)}
    helper_lines = {match["name"]: _lines_at(text, match) for match in HELPER.finditer(text)}
    functions: dict[str, list[re.Match[str]]] = {kernel: [] for kernel in kernels}
    for match in KERNEL.finditer(text):
        functions.get(_DEVICE_FUNCTION.sub("", match["name"]), []).append(match)
    lines: dict[str, list[int]] = {}
    for kernel, several in functions.items():
        called = _called_by("\n".join(match[0] for match in several), helpers)
        parts = [helper_lines[name] for name in helpers if name in called]
        parts += [_lines_at(text, match) for match in several]
        lines[kernel] = [line for part in parts for line in (0, *part)][1:]
    return lines


def _lines_at(text: str, match: re.Match[str]) -> range:
    first = text.count("\n", 0, match.start()) + 1
    return range(first, first + match[0].count("\n"))


def sources_of(text: str, kernels: Sequence[str]) -> dict[str, str]:
    """CUDA C by kernel: its functions, preceded by the helpers that they call."""
    lines = ["", *text.splitlines()]
    return {
        kernel: "".join(f"{lines[line]}\n" for line in numbers)
        for kernel, numbers in source_lines(text, kernels).items()
    }


def _called_by(code: str, helpers: dict[str, str]) -> set[str]:
    """Names of the helpers that the code calls, directly or through other helpers."""
    called: set[str] = set()
    pending = [code]
    while pending:
        text = pending.pop()
        for name in helpers.keys() - called:
            if re.search(rf"\b{name}\(", text):
                called.add(name)
                pending.append(helpers[name])
    return called


def backend_for(architecture: str, recorder: LaunchRecorder) -> Backend:
    """The backend for GPUs of an architecture (``sm_80``). ``recorder``: the pass instrument of the compilation."""
    return Backend(ScheduleForGpu(), functools.partial(_cuda_code, architecture, recorder), join_kernels, True)
