"""Small helpers of the kernels: functions with a list of parameters known only here, names, and odd sizes cut
into pieces."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder.ir import prim_func

from moec.targets.tvm.phases.schedule import WORK


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A tensor that a kernel takes. A size given as a string is dynamic; the same string is the same size."""

    name: str
    shape: Sequence[int | str]
    dtype: str


def emit_kernel(
    parameters: Sequence[Parameter], body: Callable[..., None], llvm: str = "", numbers: Sequence[str] = ()
) -> tirx.PrimFunc:
    """A kernel whose code ``body(**buffers)`` emits; the buffers are those of the parameters, by name.

    ``llvm``: functions in LLVM's assembly that the code calls. ``numbers``: names of integers that it takes before all
    tensors; ``body`` gets them, too.
    """
    with IRBuilder() as builder:
        with prim_func(s_tir=True):
            T.func_attr({"tirx.noalias": True})
            sizes: dict[str, Any] = {}
            for name in dict.fromkeys(size for parameter in parameters for size in parameter.shape):
                if isinstance(name, str):
                    sizes[name] = IRBuilder.name(name, T.int64())
            values = {name: T.arg(name, T.int64()) for name in numbers}
            handles = [T.arg(f"{parameter.name}_handle", T.handle()) for parameter in parameters]
            buffers = {}
            for parameter, handle in zip(parameters, handles, strict=True):
                shape = [sizes[size] if isinstance(size, str) else size for size in parameter.shape]
                buffer = T.match_buffer(handle, shape, parameter.dtype, align=64, layout=None)
                buffers[parameter.name] = IRBuilder.name(parameter.name, buffer)
            with T.attr(0, "pragma_import_llvm", llvm) if llvm else contextlib.nullcontext():
                body(**values, **buffers)
        return builder.get()


def power_of_two_parts(limit: int) -> list[int]:
    """The powers of two up to ``limit``, largest first: with them any count up to ``limit`` can be put together."""
    return [1 << bit for bit in reversed(range(limit.bit_length()))]


def vector_parts(count: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements into (start, length) pieces whose lengths are powers of two, largest first."""
    parts: list[tuple[int, int]] = []
    start = 0
    for length in power_of_two_parts(count):
        if count & length:
            parts.append((start, length))
            start += length
    return parts


def column_parts(size: int, width: int) -> list[tuple[int, int]]:
    """Cut columns into (start, length) pieces: whole ones of ``width`` and a rest in powers of two."""
    whole = size - size % width
    rest = [(whole + start, count) for start, count in vector_parts(size % width)]
    return [(start, width) for start in range(0, whole, width)] + rest


def named(name: str, value: Any) -> Any:
    """A variable or buffer under its name in the source, so that the generated code is readable."""
    return IRBuilder.name(name, value)


def quotient(dividend: Any, divisor: Any) -> Any:
    """The quotient of an integer that is not negative and a positive one, rounded down.

    TVM cannot prove the signs of sizes and of what is read from memory. For ``//`` it generates code for all signs,
    eight operations of which each repeats the divisor, and analyse them wherever the quotient is used.
    """
    return tirx.truncdiv(dividend, divisor)


def remainder(dividend: Any, divisor: Any) -> Any:
    """The remainder of :func:`quotient`."""
    return tirx.truncmod(dividend, divisor)


def parallel_rows(rows: Any, row_work: int = 2048) -> Any:
    """A loop over rows that runs on threads where there is enough work.

    ``row_work``: elements per row; by default those of a usual row, for kernels that know the size only at run time."""
    return T.parallel(rows, annotations={WORK: row_work})


@contextlib.contextmanager
def loop(name: str, frame: Any) -> Iterator[Any]:
    """A loop (``T.serial(...)``, ``T.parallel(...)`` and the others) whose variable has a name."""
    with frame as variable:
        yield named(name, variable)
