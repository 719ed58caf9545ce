"""The CUDA backend of the TVM pipeline: schedules, the phases from TIR to CUDA C, and the source text of each
kernel."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx
from tvm.tirx.build import split_host_device_mods

from moec.targets.cuda.early_launches import AskForEarlyLaunches, WaitForKernelsBefore, has_early_launches
from moec.targets.cuda.launches import LaunchRecorder, facts_of, with_registers
from moec.targets.cuda.nvcc import MISSING, PREAMBLE, SOURCE, compile_source
from moec.targets.cuda.text import finished
from moec.targets.cuda.text.syntax import HELPER, KERNEL
from moec.targets.gpu.kernels.lower_by_form import LowerByForm
from moec.targets.gpu.lowering.launch_conditions import ApplyLaunchConditions
from moec.targets.gpu.lowering.schedule import ScheduleForGpu, scheduled_kernel_phases
from moec.targets.tvm.phases import host_code
from moec.targets.tvm.phases.pipeline import Backend, Generated
from moec.targets.tvm.text.unused_names import DropUnusedNames

_PROTOTYPE = re.compile(r'^extern "C" __global__ ', re.MULTILINE)
_DEVICE_FUNCTION = re.compile(r"_kernel(_\d+)?$")
"""The suffix that TVM adds to a function's name for its parts that run on the device."""


@tvm.register_global_func("tvm_callback_cuda_postproc", override=True)
def _finish_text(source: str, _target: tvm.target.Target) -> str:
    """The final text of generated CUDA C. TVM calls this before it compiles or stores the text."""
    return finished(source)


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
        ApplyLaunchConditions(),
        loops.MakePackedAPI(),
        loops.FP8StorageLegalize(),
        loops.BF16StorageLegalize(),
    ]


def _cuda_code(
    architecture: str, recorder: LaunchRecorder, module: tvm.IRModule, target: tvm.target.Target
) -> Generated:
    host, device = lowered_kernels(module, target)
    objects = {"kernels.o": host_code.compile_host(host, target.host)}
    if device is None:
        return Generated(objects, {"cuda": {}})
    kernels = [symbol.name_hint for symbol in module.functions]
    code = tvm.get_global_func("target.build.cuda")(device, target)
    source = code.inspect_source()
    launches = {kernel: recorder.launches.get(kernel, []) for kernel in kernels}
    generated = Generated(
        objects,
        {"cuda": sources_of(source, kernels)},
        launches=launches,
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


def sources_of(text: str, kernels: Sequence[str]) -> dict[str, str]:
    """CUDA C by kernel: its functions, preceded by the helpers that they call."""
    helpers = {match["name"]: match[0] for match in HELPER.finditer(text)}
    sources = _by_kernel({match["name"]: match[0] for match in KERNEL.finditer(text)}, kernels)
    for kernel, functions in sources.items():
        called = _called_by(functions, helpers)
        sources[kernel] = "\n".join([*(code for name, code in helpers.items() if name in called), functions])
    return sources


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
    return Backend(ScheduleForGpu(), functools.partial(_cuda_code, architecture, recorder))
