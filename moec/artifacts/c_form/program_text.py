"""The host part of a program as a function in C."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from moec.common.errors import UnsupportedError
from moec.common.names import in_comment
from moec.runtime.loops import body_name
from moec.targets.base import KernelRecord
from moec.targets.host_program import (
    Check,
    Give,
    HostCall,
    HostLoop,
    HostLoopResult,
    HostParameter,
    HostProgram,
    HostTensor,
    ReadSizes,
    Step,
    Take,
)

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_FUNCTIONS = frozenset({"min", "max", "floor_div", "floor_mod"})
_WIDTH = 116


def kernel_declarations(host: HostProgram, kernels: Sequence[KernelRecord], others: Sequence[str] = ()) -> str:
    """Declarations of the kernels that are called, and ``others``, with the formula of each."""
    formulas = {kernel.name: in_comment(kernel.computes or kernel.op) for kernel in kernels}
    steps = [step for part in (*host.bodies, host) for step in part.steps]
    called = dict.fromkeys([step.kernel for step in steps if isinstance(step, HostCall)] + list(others))
    return "\n".join(
        f"extern moec_kernel __tvm_ffi_{name};" + (f" /* {formulas[name]} */" if name in formulas else "")
        for name in called
    )


def constants(host: HostProgram) -> str:
    """Definitions of the small constants, as the bytes that they have in memory."""
    return "\n".join(
        f"static const _Alignas(64) uint8_t {name}[] = {{ /* {array.dtype}{list(array.shape)} */\n{_bytes(array)}}};"
        for part in (*host.bodies, host)
        for name, array in part.constants.items()
    )


def loop_functions(host: HostProgram) -> str:
    """The bodies of loops as functions, each with a table of what the runtime needs to know of the loop."""
    loops = {step.body: step for part in (*host.bodies, host) for step in part.steps if isinstance(step, HostLoop)}
    return "\n\n".join(_loop_function(number, host.bodies[number], loops[number]) for number in sorted(loops))


def _loop_function(number: int, body: HostProgram, loop: HostLoop) -> str:
    name = body_name(number)
    places = ", ".join(f"{{{result}, {axis}}}" for result, axis in loop.places) or "{0}"
    fields = [
        f".body = {name}, .input_count = {body.inputs}, .result_count = {len(body.results)}",
        f".state_count = {loop.states}, .asks = {str(loop.asks).lower()}",
        f".place_count = {len(loop.places)}, .places = {name}_places",
    ]
    return "\n".join(
        [
            f"static moec_error {name}(moec_call *call) {{",
            *_StepWriter(body, holds=False).lines(),
            "}",
            f"static const int32_t {name}_places[][2] = {{{places}}};",
            f"static const moec_loop {name}_loop = {{{', '.join(fields)}}};",
        ]
    )


def run_function(host: HostProgram, *, holds: bool) -> str:
    """The function ``run``, which computes one call of the program. ``holds``: whether it takes the lengths of states
    that it holds."""
    return "\n".join(["static moec_error run(moec_call *call) {", *_StepWriter(host, holds).lines(), "}"])


class _StepWriter:
    def __init__(self, host: HostProgram, holds: bool) -> None:
        self._host, self._holds = host, holds
        self._parameters = {parameter.name: parameter for parameter in host.parameters if parameter.dtype}
        shared = Counter(result.memory for result in host.results)
        self._results = {
            result.memory: at
            for at, result in enumerate(host.results)
            if shared[result.memory] == 1 and result.offset == 0
        }

    def lines(self) -> Iterator[str]:
        yield "    moec_enter(call);"
        yield from self._operands()
        yield from self._sizes()
        for step in self._host.steps:
            yield from self._step(step)
        yield ""
        for at, result in enumerate(self._host.results):
            yield f"    RESULT({at}, {self._view(result)});"
        yield "    return moec_leave(call);"

    def _operands(self) -> Iterator[str]:
        used = set(_names_in(self._host))
        first = self._host.inputs
        inputs = [parameter for parameter in self._host.parameters[:first] if parameter.dtype]
        for at, parameter in enumerate(inputs):
            yield f"    const moec_value {parameter.name} = call->inputs[{at}];"
        for at, parameter in enumerate(self._host.parameters[first:]):
            if parameter.is_number:
                yield f"    const int64_t {parameter.name} = call->weights[{at}].number;"
            elif parameter.name in used:
                yield f"    const moec_value {parameter.name} = call->weights[{at}];"

    def _sizes(self) -> Iterator[str]:
        """Named sizes from the places where they stand alone, and checks of the others."""
        names: set[str] = {parameter.name for parameter in self._host.parameters if parameter.is_number}
        checks = []
        for place, size in _places(self._host.parameters[: self._host.inputs], self._holds):
            if _NAME.fullmatch(size) and size not in names:
                names.add(size)
                yield f"    const int64_t {size} = {place};"
            elif not size.isdigit():
                checks.append((place, size))
        for place, size in checks:
            unknown = [name for name in _NAME.findall(size) if name not in names | _FUNCTIONS]
            if unknown:
                raise UnsupportedError(f"no input tells {unknown[0]} of size {size}; compile without --form c")
            yield f'    CHECK_EQUAL({place}, {size}, "{size}");'

    def _step(self, step: Step) -> Iterator[str]:
        if isinstance(step, Take):
            result = self._results.get(step.memory)
            word = f"TAKE({step.memory}" if result is None else f"TAKE_RESULT({step.memory}, {result}"
            yield f"    {word}, {step.bytes}); /* {step.holds} */"
        elif isinstance(step, Give):
            yield f"    GIVE({step.memory});"
        elif isinstance(step, HostCall):
            yield from _lines([f"RUN({step.kernel}", *map(self._argument, step.arguments)])
        elif isinstance(step, ReadSizes):
            address = f"(const int64_t *){self._address(step.tensor)}"
            for at, name in enumerate(step.names):
                yield f"    const int64_t {name} = ({address})[{at}];"
        elif isinstance(step, HostLoop):
            operands = map(self._argument, step.arguments)
            yield from _lines([f"LOOP({body_name(step.body)}", self._address(step.report), *operands])
        elif isinstance(step, HostLoopResult):
            how = f"{step.result}, {step.axis}, {str(step.is_backward).lower()}"
            yield from _lines([f"LOOP_RESULT({self._address(step.report)}", how, self._view(step.target)])
        elif isinstance(step, Check):
            yield f'    CHECK_EQUAL({step.actual}, {step.expected}, "{step.what}");'

    def _argument(self, argument: HostTensor | str) -> str:
        if isinstance(argument, str):
            return f"N({argument})"
        parameter = self._parameters.get(argument.memory)
        if parameter is not None and parameter.shape == argument.shape and argument.offset == 0:
            return argument.memory
        sizes, address = argument.shape, self._address(argument)
        return f"T({', '.join([argument.dtype, address, *sizes])})" if sizes else f"S({argument.dtype}, {address})"

    def _view(self, tensor: HostTensor) -> str:
        address = self._address(tensor)
        if not tensor.shape:
            return f"SCALAR({tensor.dtype}, {address})"
        return f"TENSOR({', '.join([tensor.dtype, address, *tensor.shape])})"

    def _address(self, tensor: HostTensor) -> str:
        base = tensor.memory if tensor.memory not in self._parameters else f"{tensor.memory}.view->data"
        return f"{base} + {tensor.offset}" if tensor.offset else base


def _places(parameters: Sequence[HostParameter], holds: bool) -> Iterator[tuple[str, str]]:
    """The expression that reads each size of the inputs, and the size."""
    lists = ["call->lengths[{}]", "call->wanted"] if holds else ["call->wanted"]
    for parameter in parameters:
        place = f"{parameter.name}.view->shape[{{}}]" if parameter.dtype else lists.pop(0)
        yield from ((place.format(at), size) for at, size in enumerate(parameter.shape))


def _names_in(host: HostProgram) -> Iterator[str]:
    for step in host.steps:
        if isinstance(step, HostCall | HostLoop):
            yield from (each.memory for each in step.arguments if isinstance(each, HostTensor))
        elif isinstance(step, ReadSizes):
            yield step.tensor.memory
    yield from (result.memory for result in host.results)


def _lines(parts: Sequence[str]) -> Iterator[str]:
    """A call of ``parts``, the first with an open bracket, in lines that end behind whole arguments."""
    line = "    " + parts[0]
    for part in parts[1:]:
        if len(line) + len(part) > _WIDTH:
            yield f"{line},"
            line = " " * 8 + part
        else:
            line = f"{line}, {part}"
    yield f"{line});"


def _bytes(array: np.ndarray) -> str:
    numbers = [str(byte) for byte in np.ascontiguousarray(array).tobytes()] or ["0"]
    return "".join(f"    {', '.join(numbers[at : at + 24])},\n" for at in range(0, len(numbers), 24))
