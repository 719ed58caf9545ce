"""Activations to int8, on the fly: every group of a row by its own scale, as ``ProductSpec`` of the dialect says.

``scale = largest magnitude / 127`` and ``q = round half to even(x / scale)``. The kernel also stores the sum of the
integers of each group, which products with unsigned weights need. It finds the largest magnitude by comparing bits,
where an infinity and a NaN are larger than all numbers: a group with one gets NaN as its scale, and zeros.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
from moec.targets.cpu.kernels.gather import row_width
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored

_MAGNITUDE_BITS, _INFINITY_BITS = 0x7FFFFFFF, 0x7F800000
_LARGEST = 127.0


@dataclasses.dataclass(frozen=True)
class QuantizedRows:
    """Rows of ``width`` elements of ``dtype``, ``input_width`` apart, zero filled to ``padded`` elements.

    ``group``: elements that share a scale, ``sum_group``: elements that share a sum; 0 for all of the row.
    """

    width: int
    input_width: int
    padded: int
    group: int
    sum_group: int
    dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        return row_width(self.padded, 1)

    @property
    def scales(self) -> int:
        return self.padded // self.group if self.group else 1

    @property
    def sums(self) -> int:
        return self.padded // self.sum_group if self.sum_group else 1


@functools.cache
def quantize_rows(problem: QuantizedRows, machine: Machine) -> tirx.PrimFunc:
    """``(x[M, input_width], values[R, row_bytes] int8, scales[R, groups] float32, sums[R, sum groups] int32)``, R >= M:
    the rows from M on are not written."""
    parameters = [
        Parameter("x", ("M", problem.input_width), problem.dtype),
        Parameter("values", ("R", problem.row_bytes), "int8"),
        Parameter("scales", ("R", problem.scales), "float32"),
        Parameter("sums", ("R", problem.sums), "int32"),
    ]

    def body(x: Any, values: Any, scales: Any, sums: Any) -> None:
        with loop("row", parallel_rows(x.shape[0], problem.width)) as row:
            _RowQuantization(problem, machine.lanes, row, x, values, scales, sums).emit()

    return emit_kernel(parameters, body)


class _RowQuantization:
    """The code for one row."""

    def __init__(
        self, problem: QuantizedRows, lanes: int, row: Any, x: Any, values: Any, scales: Any, sums: Any
    ) -> None:
        self._problem, self._lanes, self._row = problem, lanes, row
        self._x, self._values, self._scales, self._sums = x, values, scales, sums

    def emit(self) -> None:
        """Emit the whole groups in a loop, then the rest of the row, if any, and the groups that are all padding."""
        problem = self._problem
        group = problem.group or problem.padded
        whole = problem.width // group
        with loop("index", T.serial(whole)) as index:
            self._group(index, group, group)
        for index in range(whole, problem.padded // group):
            self._group(index, max(0, min(group, problem.width - index * group)), group)

    def _group(self, index: Any, count: int, padded: int) -> None:
        """Emit the group with number ``index``, which has ``count`` elements and is padded with zeros."""
        start = named("start", T.bind(T.cast(index, "int64") * padded))
        largest = named("largest", T.bind(self._largest_bits(start, count)))
        finite = largest < T.int32(_INFINITY_BITS)
        magnitude = T.reinterpret("float32", largest)
        scale = named("scale", T.bind(T.Select(finite, magnitude / T.float32(_LARGEST), T.float32(float("nan")))))
        T.buffer_store(self._scales, scale, [self._row, index])
        usable = named("usable", T.bind(T.And(finite, scale > T.float32(0))))
        divisor = named("divisor", T.bind(T.Select(usable, scale, T.float32(1))))
        sum_group = self._problem.sum_group or padded
        whole = count // sum_group
        first_sum = named("first_sum", T.bind(start // sum_group))
        with loop("part", T.serial(whole)) as part:
            self._part(start + part * sum_group, sum_group, sum_group, first_sum + part, usable, divisor)
        for part in range(whole, padded // sum_group):
            left = max(0, min(sum_group, count - part * sum_group))
            self._part(start + part * sum_group, left, sum_group, first_sum + part, usable, divisor)

    def _float(self, first: Any, lanes: int) -> Any:
        loaded = self._x[self._row, T.ramp(first, 1, lanes) if lanes > 1 else first]
        return T.cast(loaded, f"float32x{lanes}" if lanes > 1 else "float32")

    def _largest_bits(self, start: Any, count: int) -> Any:
        lanes = self._lanes
        largest = named("largest", T.alloc_buffer((lanes,), "int32"))
        every = T.ramp(0, 1, lanes)
        T.buffer_store(largest, T.broadcast(T.int32(0), lanes), [every])
        with loop("vector", T.serial(count // lanes)) as vector:
            bits = T.reinterpret(f"int32x{lanes}", self._float(start + vector * lanes, lanes))
            magnitude = bits & T.broadcast(T.int32(_MAGNITUDE_BITS), lanes)
            T.buffer_store(largest, T.max(largest[every], magnitude), [every])
        for rest in range(count // lanes * lanes, count):
            bits = T.reinterpret("int32", self._float(start + rest, 1)) & T.int32(_MAGNITUDE_BITS)
            T.buffer_store(largest, T.max(largest[0], bits), [0])
        return functools.reduce(T.max, [largest[lane] for lane in range(lanes)])

    def _part(self, start: Any, count: int, padded: int, sum_index: Any, usable: Any, divisor: Any) -> None:
        """Emit the numbers of ``count`` elements, zeros up to ``padded`` elements, and their sum."""
        lanes = self._lanes
        total = named("total", T.alloc_buffer((lanes,), "int32"))
        every = T.ramp(0, 1, lanes)
        T.buffer_store(total, T.broadcast(T.int32(0), lanes), [every])
        with loop("vector", T.serial(count // lanes)) as vector:
            first = named("first", T.bind(start + vector * lanes))
            numbers = named("numbers", T.bind(_numbers(self._float(first, lanes), usable, divisor, lanes)))
            T.buffer_store(self._values, T.cast(numbers, f"int8x{lanes}"), [self._row, T.ramp(first, 1, lanes)])
            T.buffer_store(total, total[every] + numbers, [every])
        for rest in range(count // lanes * lanes, count):
            number = named("number", T.bind(_numbers(self._float(start + rest, 1), usable, divisor, 1)))
            T.buffer_store(self._values, T.cast(number, "int8"), [self._row, start + rest])
            T.buffer_store(total, total[0] + number, [0])
        with loop("rest", T.serial(padded - count)) as rest:
            T.buffer_store(self._values, T.int8(0), [self._row, start + count + rest])
        whole = functools.reduce(lambda a, b: a + b, [total[lane] for lane in range(lanes)])
        T.buffer_store(self._sums, whole, [self._row, sum_index])


def _numbers(x: Any, usable: Any, divisor: Any, lanes: int) -> Any:
    """``x / divisor`` rounded half to even as int32, 0 where the group is not ``usable``."""

    def all_lanes(number: Any) -> Any:
        return T.broadcast(number, lanes) if lanes > 1 else number

    quotient = T.Select(all_lanes(usable), x / all_lanes(divisor), all_lanes(T.float32(0)))
    bounded = T.max(T.min(quotient, all_lanes(T.float32(_LARGEST))), all_lanes(T.float32(-_LARGEST)))
    return T.cast(T.nearbyint(bounded), f"int32x{lanes}" if lanes > 1 else "int32")


QUANTIZE = Kernel(
    "quantize_rows",
    "q[r] = round(x[r] / scale), scale = largest of a group / 127",
    quantize_rows,
    how=lambda rows, _: in_storage(
        f"rows of {rows.width} columns to int8, every group by its own scale", rows.dtype, sums=False
    ),
    why_not=lambda rows, _: why_not_stored(rows.dtype),
)
