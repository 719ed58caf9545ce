"""The format of stored weights as kernels read it: the format of the graph, with the type of the scales."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import onnx_ir as ir

from moec.common.dtypes import dtype_of
from moec.common.errors import UnsupportedError
from moec.ir.weights.format import ELEMENTS, FormatName
from moec.ir.weights.stored import WeightRun

SCALE_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT8E8M0: "float8_e8m0fnu",
}
Stored = TypeVar("Stored", bound="StoredFormat")


@dataclasses.dataclass(frozen=True)
class StoredFormat:
    """``group``: consecutive inputs that share a scale, 0 for all of them. ``scale``: element type of the scales; those
    of ``float8_e8m0fnu``, which are powers of two, and of ``float8_e4m3fn`` are kept as bytes. ``zero_points``: whether
    there is a table of them. A target adds how it lays them out. ``minima``: whether there is a table of floats, of the
    type of the scales, that are subtracted."""

    element: FormatName
    group: int = 0
    scale: str = "float32"
    zero_points: bool = False
    minima: bool = False

    @classmethod
    def of(cls: type[Stored], run: WeightRun) -> Stored:
        """Raises UnsupportedError for element types and types of scales that no kernel loads."""
        form = run.kernel_format
        if not form.quantized:
            return cls(form.name)
        assert run.scale is not None
        scale = None if run.scale.dtype is None else SCALE_TYPES.get(run.scale.dtype)
        if scale is None:
            raise UnsupportedError(f"scales are {run.scale.dtype}; expected {', '.join(SCALE_TYPES.values())}")
        return cls(form.name, form.group, scale, form.zero_points, form.minima)

    @property
    def is_float(self) -> bool:
        return not ELEMENTS[self.element].scales

    @property
    def fits_bytes(self) -> bool:
        """Whether integer products take its numbers."""
        return ELEMENTS[self.element].fits_bytes and not self.is_float

    @property
    def is_e2m1(self) -> bool:
        """Whether its numbers are floats of 4 bits."""
        return ELEMENTS[self.element].signed == ir.DataType.FLOAT4E2M1

    @property
    def is_e4m3(self) -> bool:
        """Whether its numbers are floats of 8 bits."""
        return ELEMENTS[self.element].signed == ir.DataType.FLOAT8E4M3FN

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are integers."""
        return ELEMENTS[self.element].whole

    @property
    def numbers(self) -> tuple[int, ...]:
        """The only numbers that it has, in ascending order, where these are few integers at uneven distances."""
        return ELEMENTS[self.element].numbers

    @property
    def is_looked_up(self) -> bool:
        """Whether a code is the place of a number among :attr:`numbers`."""
        return bool(self.numbers)

    @property
    def bits(self) -> int:
        """Bits of one weight, without scales."""
        return ELEMENTS[self.element].bits

    @property
    def scale_storage(self) -> str:
        """Element type of the array of scales."""
        return "uint8" if self.scale.startswith("float8") else self.scale

    @property
    def name(self) -> str:
        """Name for people, such as ``int4 (groups of 32, float16 scales)``."""
        if self.is_float:
            return self.element
        groups = f"groups of {self.group}" if self.group else "per column"
        others = f"{', zero points' if self.zero_points else ''}{', minima' if self.minima else ''}"
        return f"{self.element} ({groups}, {self.scale} scales{others})"

    def groups(self, inner: int) -> int:
        """Scales per column."""
        return -(-inner // self.group) if self.group else 1

    def bits_per_weight(self, inner: int) -> float:
        """Scales and zero points included."""
        if self.is_float:
            return float(self.bits)
        scale_bits = 8 * dtype_of(self.scale_storage).itemsize
        return self.bits + (scale_bits * (1 + self.minima) + 8 * self.zero_points) * self.groups(inner) / inner
