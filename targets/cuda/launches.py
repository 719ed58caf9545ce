"""How the host launches kernels: noted while a program is compiled, and in words for the heads of texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.runtime.device_module import BEGINS_EARLY_TAG
from moec.targets.base import Launch, LaunchCondition, SizeRange, TensorMap
from moec.targets.cuda.accesses import stream_plan
from moec.targets.cuda.launch_conditions import LAUNCH_IF, NO_LIMIT, launch_numbers
from moec.targets.cuda.launch_model.plans import StreamPlan
from moec.targets.cuda.nvcc_report import registers_of
from moec.targets.tvm.c_expressions import in_c

_PHASE = "tirx.SplitHostDevice"
_LAUNCH, _CALL = "tirx.call_ffi_kernel", "tirx.tvm_call_packed"
_CLUSTER = "clusterCtaIdx.x"
_SHARED_BYTES = "tirx.use_dyn_shared_memory"
_ENCODE_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
_SHARED = "shared"


@tvm.instrument.pass_instrument
class LaunchRecorder:
    """Takes part in a compilation, and notes the launches of every kernel where TVM has split host and device."""

    def __init__(self) -> None:
        self.launches: dict[str, list[Launch]] = {}
        """By the name of the kernel, in order."""
        self.plans: dict[str, StreamPlan] = {}
        """What the kernel moves, for those that do not say how they share out their work."""

    def run_after_pass(self, module: tvm.IRModule, phase: Any) -> None:
        if phase.name != _PHASE:
            return
        functions = {symbol.name_hint: one for symbol, one in module.functions.items()}
        for name, function in functions.items():
            if isinstance(function, tirx.PrimFunc):
                found = list(_launches(function, functions))
                if found:
                    self.launches[name] = found
                    self.plans[name] = stream_plan(_on_device(function, functions))


def _launches(host: tirx.PrimFunc, functions: Mapping[str, Any]) -> Iterator[Launch]:
    maps = tuple(_tensor_map(call) for call in _calls(host, _CALL) if _text(call.args[0]) == _ENCODE_TENSOR_MAP)
    for call in _calls(host, _LAUNCH):
        extents = launch_numbers(call)
        function, arguments = _text(call.args[0]), list(call.args)[1 : len(call.args) - len(extents)]
        yield Launch(
            function,
            tuple(_argument(argument) for argument in arguments),
            _along(extents, "blockIdx"),
            _along(extents, "threadIdx"),
            in_c(extents[_SHARED_BYTES]) if _SHARED_BYTES in extents else "0",
            static_shared_bytes(functions[function]),
            tuple(tensor_map for tensor_map in maps if tensor_map.name in map(str, arguments)),
            int(extents.get(_CLUSTER, 1)),
            _condition(host),
            begins_early=BEGINS_EARLY_TAG in call.attrs.launch_params,
        )


def _on_device(host: tirx.PrimFunc, functions: Mapping[str, Any]) -> Iterator[tuple[tirx.PrimFunc, dict[Any, str]]]:
    """The functions that the host launches, with its names of the tensors that their parameters point to."""
    for call in _calls(host, _LAUNCH):
        function = functions[_text(call.args[0])]
        arguments = list(call.args)[1 : 1 + len(function.params)]
        pointers = zip(function.params, arguments, strict=True)
        yield function, {pointer: _tensor(one) for pointer, one in pointers if isinstance(one, tvm.ir.Call)}


def _condition(host: tirx.PrimFunc) -> LaunchCondition | None:
    asked = host.attrs.get(LAUNCH_IF)
    if asked is None:
        return None
    size = host.params[int(asked["parameter"])].shape[int(asked["axis"])]
    most = int(asked["most"])
    return LaunchCondition(in_c(size), SizeRange(int(asked["least"]), None if most == NO_LIMIT else most))


def _calls(host: tirx.PrimFunc, operator: str) -> list[tvm.ir.Call]:
    found: list[tvm.ir.Call] = []
    wanted = tvm.ir.Op.get(operator)
    tvm_ffi.structural_walk(host.body, [(tvm.ir.Call, lambda call: found.append(call) if call.op == wanted else None)])
    return found


def _text(argument: Any) -> str:
    return str(argument.value) if isinstance(argument, tvm.ir.StringImm) else ""


def _argument(argument: Any) -> str:
    """A tensor's address, as the function calls it; a tensor map; or an expression of sizes."""
    return f"{_tensor(argument)}_ptr" if isinstance(argument, tvm.ir.Call) else in_c(argument)


def _tensor(address: tvm.ir.Call) -> str:
    """The tensor of ``tensor.data``."""
    return str(address.args[0].name)


def _tensor_map(call: tvm.ir.Call) -> TensorMap:
    _, name, dtype, rank, address, *numbers = call.args
    return TensorMap(name.name, _tensor(address), _text(dtype), int(rank), tuple(map(in_c, numbers)))


def _along(extents: Mapping[str, Any], what: str) -> tuple[str, ...]:
    given = [in_c(extents[f"{what}.{axis}"]) if f"{what}.{axis}" in extents else "1" for axis in "xyz"]
    while len(given) > 1 and given[-1] == "1":
        given.pop()
    return tuple(given)


def static_shared_bytes(function: tirx.PrimFunc) -> int:
    """Of the arrays that a function on the device declares."""
    sizes: list[int] = []

    def add(allocation: tirx.AllocBuffer) -> None:
        buffer = allocation.buffer
        if buffer.scope() == _SHARED:
            sizes.append(math.prod(map(int, buffer.shape)) * tvm.DataType(str(buffer.dtype)).itemsize)

    tvm_ffi.structural_walk(function.body, [(tirx.AllocBuffer, add)])
    return sum(sizes)


def with_registers(launches: Sequence[Launch], resources: Mapping[str, str]) -> list[Launch]:
    """The launches of functions that ptxas spoke of, by name in ``resources``, with the registers that these have."""
    return [
        dataclasses.replace(launch, registers=registers_of(resources[launch.function]))
        if launch.function in resources
        else launch
        for launch in launches
    ]


def facts_of(launches: Sequence[Launch], resources: Mapping[str, str]) -> list[str]:
    """Lines for the head of a kernel's texts. ``resources``: what ptxas said, by function."""
    lines = []
    for launch in launches:
        grid, block = (", ".join(extents) for extents in (launch.grid, launch.block))
        name = f"{launch.function}, " if len(launches) > 1 else ""
        condition = f", where {launch.only_if}" if launch.only_if is not None else ""
        condition += "; begins before the launch before it has ended" if launch.begins_early else ""
        clusters = f" in clusters of {launch.cluster}" if launch.cluster > 1 else ""
        lines.append(f"launch: {name}grid ({grid}){clusters}, blocks of ({block}) threads{condition}")
        lines.append(
            f"shared memory: {launch.static_shared_bytes} bytes in arrays, {launch.shared_bytes} at the launch"
        )
        if launch.function in resources:
            lines.append(f"ptxas: {'; '.join(resources[launch.function].splitlines())}")
    return lines
