"""The launches of kernels by the host: recorded while a program is compiled, and in words for the heads of sources."""

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
from moec.targets.cuda.estimates.moved import moved_numbers
from moec.targets.cuda.nvcc_report import registers_of
from moec.targets.gpu.lowering.launch_conditions import LAUNCH_IF, NO_LIMIT, launch_numbers
from moec.targets.tvm.sizes.c_expressions import in_c

_PHASE = "tirx.SplitHostDevice"
_LAUNCH, _CALL = "tirx.call_ffi_kernel", "tirx.tvm_call_packed"
_CLUSTER = "clusterCtaIdx.x"
_SHARED_BYTES = "tirx.use_dyn_shared_memory"
_ENCODE_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
_ALLOCATE = "tirx.ptx.tcgen05_alloc"
_SHARED = "shared"


@tvm.instrument.pass_instrument
class LaunchRecorder:
    """A pass instrument that records the launches of every kernel, once TVM has split host and device."""

    def __init__(self) -> None:
        self.launches: dict[str, list[Launch]] = {}
        """Launches in order, by the name of the kernel."""
        self.moved: dict[str, dict[str, str]] = {}
        """The most numbers of each tensor that move, by the name of the kernel."""

    def run_after_pass(self, module: tvm.IRModule, phase: Any) -> None:
        if phase.name != _PHASE:
            return
        functions = {symbol.name_hint: function for symbol, function in module.functions.items()}
        for name, function in functions.items():
            if isinstance(function, tirx.PrimFunc):
                launches = list(_launches(function, functions))
                if launches:
                    self.launches[name] = launches
                    self.moved[name] = moved_numbers(_on_device(function, functions))


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
            tensor_columns=sum(int(allocation.args[1]) for allocation in _calls(functions[function], _ALLOCATE)),
        )


def _on_device(host: tirx.PrimFunc, functions: Mapping[str, Any]) -> Iterator[tuple[tirx.PrimFunc, dict[Any, str]]]:
    """The functions that the host launches, each with the tensors that its parameters point to, by the host's names."""
    for call in _calls(host, _LAUNCH):
        function = functions[_text(call.args[0])]
        arguments = list(call.args)[1 : 1 + len(function.params)]
        pointers = zip(function.params, arguments, strict=True)
        yield function, {pointer: _tensor(address) for pointer, address in pointers if isinstance(address, tvm.ir.Call)}


def _condition(host: tirx.PrimFunc) -> LaunchCondition | None:
    asked = host.attrs.get(LAUNCH_IF)
    if asked is None:
        return None
    size = host.params[int(asked["parameter"])].shape[int(asked["axis"])]
    least, most = (int(asked["expected"][name]) for name in ("least", "most"))
    return LaunchCondition(in_c(size), SizeRange(least, None if most == NO_LIMIT else most))


def _calls(function: tirx.PrimFunc, operator: str) -> list[tvm.ir.Call]:
    calls: list[tvm.ir.Call] = []
    op = tvm.ir.Op.get(operator)
    tvm_ffi.structural_walk(function.body, [(tvm.ir.Call, lambda call: calls.append(call) if call.op == op else None)])
    return calls


def _text(argument: Any) -> str:
    return str(argument.value) if isinstance(argument, tvm.ir.StringImm) else ""


def _argument(argument: Any) -> str:
    """An argument of a launch in C: a tensor's address as the function names it, a tensor map, or an expression of
    sizes."""
    return f"{_tensor(argument)}_ptr" if isinstance(argument, tvm.ir.Call) else in_c(argument)


def _tensor(address: tvm.ir.Call) -> str:
    """The name of the tensor whose address, ``tensor.data``, this is."""
    return str(address.args[0].name)


def _tensor_map(call: tvm.ir.Call) -> TensorMap:
    _, name, dtype, rank, address, *numbers = call.args
    return TensorMap(name.name, _tensor(address), _text(dtype), int(rank), tuple(map(in_c, numbers)))


def _along(extents: Mapping[str, Any], what: str) -> tuple[str, ...]:
    sizes = [in_c(extents[f"{what}.{axis}"]) if f"{what}.{axis}" in extents else "1" for axis in "xyz"]
    while len(sizes) > 1 and sizes[-1] == "1":
        sizes.pop()
    return tuple(sizes)


def static_shared_bytes(function: tirx.PrimFunc) -> int:
    """Bytes of the static arrays in shared memory that a function of the device declares."""
    sizes: list[int] = []

    def add(allocation: tirx.AllocBuffer) -> None:
        buffer = allocation.buffer
        if buffer.scope() == _SHARED:
            sizes.append(math.prod(map(int, buffer.shape)) * tvm.DataType(str(buffer.dtype)).itemsize)

    tvm_ffi.structural_walk(function.body, [(tirx.AllocBuffer, add)])
    return sum(sizes)


def with_registers(launches: Sequence[Launch], resources: Mapping[str, str]) -> list[Launch]:
    """The launches with their numbers of registers. ``resources``: ptxas's report by function; launches of other
    functions stay as they are."""
    return [
        dataclasses.replace(launch, registers=registers_of(resources[launch.function]))
        if launch.function in resources
        else launch
        for launch in launches
    ]


def facts_of(launches: Sequence[Launch], resources: Mapping[str, str]) -> list[str]:
    """Lines about the launches for the head of a kernel's source. ``resources``: ptxas's report by function."""
    lines = []
    for launch in launches:
        grid, block = (", ".join(extents) for extents in (launch.grid, launch.block))
        name = f"{launch.function}, " if len(launches) > 1 else ""
        condition = f", where {launch.only_if}" if launch.only_if is not None else ""
        condition += "; begins before the launch before it has ended" if launch.begins_early else ""
        clusters = f" in clusters of {launch.cluster}" if launch.cluster > 1 else ""
        lines.append(f"launch: {name}grid ({grid}){clusters}, blocks of ({block}) threads{condition}")
        tensor_memory = f"; tensor memory: {launch.tensor_columns} columns" if launch.tensor_columns else ""
        shared = f"{launch.static_shared_bytes} bytes in arrays, {launch.shared_bytes} at the launch"
        lines.append(f"shared memory: {shared}{tensor_memory}")
        if launch.function in resources:
            lines.append(f"ptxas: {'; '.join(resources[launch.function].splitlines())}")
    return lines
