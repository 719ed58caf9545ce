"""The host part of a program, read from Relax before shapes become slots of the virtual machine's heap."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from moec.common.errors import UnsupportedError
from moec.runtime.loops import LOOP, LOOP_RESULT
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
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of
from moec.targets.tvm.sizes.c_expressions import in_exact_c, in_floating_c

_STORAGE, _TENSOR = "relax.memory.alloc_storage", "relax.memory.alloc_tensor"
_RESERVED = (
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool true "
    "false call run max min floor_div floor_mod main errno stdin stdout stderr NULL"
)
"""Words that mean something else in a generated program."""


def host_program(module: tvm.IRModule, bodies: Mapping[str, tvm.IRModule]) -> HostProgram:
    """Read ``main``, whose kernels are called on allocated memory, and the ``bodies`` of its loops by name. Raises
    UnsupportedError for other calls of the runtime, such as streamed experts, and for sizes without a spelling in C."""
    read = [_ProgramReader(body["main"], f"{name}_constant", bodies).read() for name, body in bodies.items()]
    return dataclasses.replace(_ProgramReader(module["main"], "constant", bodies).read(), bodies=read)


class _HostNames:
    """Identifiers of C for variables, each used once. ``reserved``: names of functions."""

    def __init__(self, reserved: Iterable[str]) -> None:
        self._used: set[str] = {*_RESERVED.split(), *reserved}
        self._names: dict[tvm.ir.Var, str] = {}

    def of(self, variable: tvm.ir.Var) -> str:
        if variable not in self._names:
            self._names[variable] = self.new(variable.name)
        return self._names[variable]

    def new(self, suggestion: str) -> str:
        clean = re.sub(r"\W+", "_", suggestion, flags=re.ASCII).strip("_") or "value"
        clean = f"n{clean}" if clean[0].isdigit() else clean
        candidates = (clean if count == 1 else f"{clean}_{count}" for count in itertools.count(1))
        name = next(name for name in candidates if name not in self._used)
        self._used.add(name)
        return name


@dataclasses.dataclass(frozen=True)
class _Storage:
    memory: str
    bytes: Any


@dataclasses.dataclass(frozen=True)
class _ToRead:
    """A list of sizes that are the elements of a tensor."""

    tensor: HostTensor


@dataclasses.dataclass(frozen=True)
class _Fields:
    values: Sequence[Any]


class _ProgramReader:
    def __init__(self, main: relax.Function, constant: str, functions: Iterable[str]) -> None:
        """``constant``: the name of the first constant; ``functions``: names of functions."""
        self._main, self._inputs, self._names = main, int(main.attrs["num_input"]), _HostNames(functions)
        self._constant_name = constant
        self._analyzer = tvm.sym.Analyzer()
        self._values: dict[tvm.ir.Var, HostTensor | _Storage | _ToRead | _Fields] = {}
        self._storages = 0
        self._taken: set[str] = set()
        self._constants: dict[str, np.ndarray] = {}
        self._steps: list[Step] = []

    def read(self) -> HostProgram:
        parameters = [self._parameter(variable) for variable in self._main.params]
        for binding in bindings_of(self._main):
            if isinstance(binding, relax.MatchCast):
                self._match(binding)
            else:
                self._bind(binding.var, binding.value)
        results = self._results(self._main.body.body)
        kept = {tensor.memory for tensor in results}
        return HostProgram(parameters, self._inputs, self._constants, _with_gives(self._steps, kept), results)

    def _parameter(self, variable: tvm.ir.Var) -> HostParameter:
        kind = variable.ty
        if isinstance(kind, relax.ShapeType):
            return HostParameter("", None, self._sizes(kind.values))
        name = self._names.of(variable)
        if isinstance(kind, tvm.ir.PrimType):
            return HostParameter(name, str(kind.dtype), (), is_number=True)
        shape = self._sizes(kind.shape)
        self._values[variable] = HostTensor(name, 0, str(kind.dtype), shape)
        return HostParameter(name, str(kind.dtype), shape)

    def _bind(self, variable: tvm.ir.Var, value: Any) -> None:
        if isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            self._steps.append(HostCall(value.op.name_hint, tuple(map(self._argument, value.args))))
        elif isinstance(value, tvm.ir.Call) and getattr(value.op, "global_symbol", None) == LOOP:
            self._steps.append(self._loop(value.args))
        elif isinstance(value, tvm.ir.Call) and getattr(value.op, "global_symbol", None) == LOOP_RESULT:
            result, axis, is_backward = map(_number, value.args[:3])
            report, target = map(self._tensor, value.args[3:])
            self._steps.append(HostLoopResult(result, axis, bool(is_backward), report, target))
        else:
            self._values[variable] = self._value(variable, value)

    def _loop(self, arguments: Sequence[Any]) -> HostLoop:
        body, states, asks, count = map(_number, arguments[:4])
        numbers = list(map(_number, arguments[4 : 4 + 2 * count]))
        *operands, report = arguments[4 + 2 * count :]
        places = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        return HostLoop(body, states, bool(asks), places, tuple(map(self._argument, operands)), self._tensor(report))

    def _value(self, variable: tvm.ir.Var, value: Any) -> HostTensor | _Storage | _ToRead | _Fields:
        if isinstance(value, tvm.ir.GenericConst):
            return self._constant(value)
        if isinstance(value, tvm.ir.Var):
            return self._values[value]
        if isinstance(value, relax.Tuple):
            return _Fields(list(value.fields))
        if isinstance(value, relax.TupleGetItem):
            fields = self._values[value.tuple_value]
            assert isinstance(fields, _Fields)
            return self._value(variable, fields.values[value.index])
        if is_call_of(value, _STORAGE):
            self._storages += 1
            return _Storage(self._names.new(f"m{self._storages}"), value.args[0].values[0])
        if is_call_of(value, _TENSOR):
            return self._allocated(value)
        if is_call_of(value, "relax.reshape"):
            return self._view(variable, value)
        if is_call_of(value, "relax.tensor_to_shape"):
            return _ToRead(self._tensor(value.args[0]))
        raise UnsupportedError(f"{_described(value)} has no equivalent in C; compile without --form c")

    def _tensor(self, value: Any) -> HostTensor:
        tensor = self._constant(value) if isinstance(value, tvm.ir.GenericConst) else self._values[value]
        assert isinstance(tensor, HostTensor)
        return tensor

    def _constant(self, value: tvm.ir.GenericConst) -> HostTensor:
        array = value.value.numpy()
        name = self._names.new(self._constant_name)
        self._constants[name] = array
        return HostTensor(name, 0, str(value.ty.dtype), tuple(str(size) for size in array.shape))

    def _allocated(self, value: tvm.ir.Call) -> HostTensor:
        storage, offset, shape, dtype, *_ = value.args
        kept = self._values[storage]
        assert isinstance(kept, _Storage)
        tensor = HostTensor(kept.memory, _number(offset), str(dtype.value), self._sizes(shape.values))
        if kept.memory not in self._taken:
            self._taken.add(kept.memory)
            holds = f"{tensor.dtype}[{', '.join(tensor.shape)}]"
            self._steps.append(Take(kept.memory, in_floating_c(kept.bytes, self._name_of), holds))
        return tensor

    def _view(self, variable: tvm.ir.Var, value: tvm.ir.Call) -> HostTensor:
        source, before, after = self._tensor(value.args[0]), value.args[0].ty.shape, variable.ty.shape
        counts = [_product(shape) for shape in (before, after)]
        if not self._analyzer.can_prove_equal(*counts):
            actual, expected = (in_exact_c(count, self._name_of) for count in counts)
            self._steps.append(Check(actual, expected, f"elements of a reshaped tensor: {actual} == {expected}"))
        return HostTensor(source.memory, source.offset, source.dtype, self._sizes(after))

    def _match(self, binding: relax.MatchCast) -> None:
        read = self._values[binding.value]
        sizes = list(binding.ty.values) if isinstance(binding.ty, relax.ShapeType) else []
        if not isinstance(read, _ToRead) or not all(isinstance(size, tirx.Var) for size in sizes):
            raise UnsupportedError("a size that has to match others has no equivalent in C; compile without --form c")
        self._steps.append(ReadSizes(tuple(map(self._name_of, sizes)), read.tensor))

    def _argument(self, value: Any) -> HostTensor | str:
        if isinstance(value, tvm.ir.GenericConst) or value in self._values:
            return self._tensor(value)
        return in_exact_c(value, self._name_of)

    def _results(self, body: Any) -> list[HostTensor]:
        value = self._values[body]
        return [self._tensor(field) for field in value.values] if isinstance(value, _Fields) else [self._tensor(body)]

    def _sizes(self, sizes: Sequence[Any]) -> tuple[str, ...]:
        return tuple(in_exact_c(size, self._name_of) for size in sizes)

    @property
    def _name_of(self) -> Callable[[tirx.Var], str]:
        return self._names.of


def _with_gives(steps: Sequence[Step], kept: set[str]) -> list[Step]:
    """The steps, and behind the last use of each memory that is not ``kept`` its return."""
    backwards: list[Step] = []
    seen = set(kept)
    for step in reversed(steps):
        for memory in _used(step):
            if memory not in seen:
                seen.add(memory)
                backwards.append(Give(memory))
        backwards.append(step)
    taken = {step.memory for step in steps if isinstance(step, Take)}
    return [step for step in reversed(backwards) if not isinstance(step, Give) or step.memory in taken]


def _used(step: Step) -> list[str]:
    if isinstance(step, HostLoopResult):
        return [step.report.memory, step.target.memory]
    if isinstance(step, HostCall | HostLoop):
        tensors = [*step.arguments, *([step.report] if isinstance(step, HostLoop) else [])]
        return list(dict.fromkeys(each.memory for each in tensors if isinstance(each, HostTensor)))
    if isinstance(step, ReadSizes):
        return [step.tensor.memory]
    return [step.memory] if isinstance(step, Take) else []


def _product(sizes: Sequence[Any]) -> Any:
    product: Any = tirx.IntImm("int64", 1)
    for size in sizes:
        product = product * size
    return product


def _number(value: Any) -> int:
    return int(getattr(value, "value", value))


def _described(value: Any) -> str:
    called = getattr(value, "op", None)
    name = getattr(called, "global_symbol", None) or getattr(called, "name", None) or type(value).__name__
    return f"the program's call of {name}"
