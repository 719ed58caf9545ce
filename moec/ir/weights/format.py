"""The formats that weights are stored in: one row each."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import ml_dtypes
import onnx_ir as ir

QuantizedName = Literal["int8", "int6", "int5", "int4", "int3", "int2", "iq4", "mxfp4", "nvfp4", "fp4", "fp8"]
FormatName = Literal["float64", "float32", "float16", "bfloat16", QuantizedName]

MX_GROUP, NV_GROUP = 32, 16
_IQ4_NUMBERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_EXPONENT, _CODE = ir.DataType.FLOAT8E8M0, ir.DataType.FLOAT8E4M3FN


@dataclasses.dataclass(frozen=True)
class Elements:
    """The elements of a format, and the scales and groups that it allows: all that tells formats apart.

    ``signed``: the type of an element; ``unsigned``: its type with zero points or minima. ``error``: the largest error
    of an element without zero points, as a share of its group's largest one (of a float, of itself). ``scales``: the
    types of a scale for all inputs and of one for a group; empty for floats. ``groups``: the sizes of groups (0 for all
    inputs) that a pass may choose, if they are limited; ``imported``: further sizes, which only imported files have.
    ``width``: bits in use, if the type has more. ``numbers``: the only ones that elements are, in ascending order;
    empty if they are all of a range. ``square``: the size of groups whose scale as many consecutive outputs share; 0 if
    outputs never share one.
    """

    signed: ir.DataType
    error: float = 0.0
    unsigned: ir.DataType | None = None
    scales: tuple[ir.DataType, ...] = ()
    groups: tuple[int, ...] = ()
    imported: tuple[int, ...] = ()
    width: int | None = None
    numbers: tuple[int, ...] = ()
    square: int = 0

    @property
    def bits(self) -> int:
        """Bits of one weight, without scales."""
        return self.width or self.signed.bitwidth

    @property
    def whole(self) -> bool:
        """Whether elements are stored as integers."""
        return self.signed.is_integer()

    @property
    def largest(self) -> float:
        """The largest number that an element holds, where elements are floats."""
        return float(ml_dtypes.finfo(self.signed.numpy()).max)

    @property
    def has_exponents(self) -> bool:
        """Whether scales are powers of two, of which the exponents are stored."""
        return _EXPONENT in self.scales

    @property
    def has_factors(self) -> bool:
        """Whether scales are floats of 8 bits, times a float32 of their output."""
        return _CODE in self.scales

    @property
    def usually_grouped(self) -> bool:
        """Whether inputs share scales in groups unless asked otherwise."""
        return bool(self.groups) or self.bits < 8

    @property
    def fits_bytes(self) -> bool:
        """Whether its numbers, or twice these, are integers of 8 bits, which integer products take."""
        return self.whole or self.bits < 8

    def takes_scales(self, dtype: ir.DataType) -> bool:
        """Whether scales may have this type: one of 8 bits if the format uses it, any other type if it uses none."""
        if self.has_exponents or self.has_factors or dtype in (_EXPONENT, _CODE):
            return dtype in self.scales
        return bool(self.scales)


_BY_GROUP = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT)
_EXPONENTS = (_EXPONENT, _EXPONENT)
_CODES = (_CODE, _CODE)
ELEMENTS: dict[FormatName, Elements] = {
    "float64": Elements(ir.DataType.DOUBLE),
    "float32": Elements(ir.DataType.FLOAT),
    "float16": Elements(ir.DataType.FLOAT16, 1 / 2048),
    "bfloat16": Elements(ir.DataType.BFLOAT16, 1 / 256),
    "int8": Elements(ir.DataType.INT8, 1 / 254, ir.DataType.UINT8, _BY_GROUP),
    "int6": Elements(ir.DataType.INT8, 1 / 32, ir.DataType.UINT8, _BY_GROUP, (64, 32), (16,), width=6),
    "int5": Elements(ir.DataType.INT8, 1 / 16, ir.DataType.UINT8, _BY_GROUP, (64, 32), (16,), width=5),
    "int4": Elements(ir.DataType.INT4, 1 / 8, ir.DataType.UINT4, _BY_GROUP),
    "int3": Elements(ir.DataType.INT4, 1 / 4, ir.DataType.UINT4, _BY_GROUP, (64, 32), (16,), width=3),
    "int2": Elements(ir.DataType.INT2, 1 / 2, ir.DataType.UINT2, _BY_GROUP, (64, 32), (16,)),
    "iq4": Elements(ir.DataType.INT8, 14 / 127, None, _BY_GROUP, (64, 32), width=4, numbers=_IQ4_NUMBERS),
    "mxfp4": Elements(ir.DataType.FLOAT4E2M1, 1 / 4, None, _EXPONENTS, (MX_GROUP,)),
    "nvfp4": Elements(ir.DataType.FLOAT4E2M1, 3 / 17, None, _CODES, (NV_GROUP,)),
    "fp4": Elements(ir.DataType.FLOAT4E2M1, 1 / 6, None, _BY_GROUP, (32, 16)),
    "fp8": Elements(ir.DataType.FLOAT8E4M3FN, 1 / 28, None, _FLOATS, square=128),
}


_PRINTED = re.compile(
    r"(?P<name>[a-z]+\d+)(/(?P<group>\d{1,9}))?(/(?P<super>\d{1,9}))?(?P<zero>z)?(?P<minima>m)?", re.ASCII
)


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """The format of a stored weight. ``group``: consecutive inputs that share a scale, 0 for all of them (per channel).

    With ``zero_points`` a stored number q means scale * (q - zero point), with ``minima`` scale * q - minimum; the
    minimum of a group is a float of the type of its scale. ``super_group``: consecutive inputs whose groups have scales
    of two levels (integers times one shared float), and likewise minima; 0 if scales are floats. In nvfp4 all groups of
    an output share the float32 by which their scales, floats of 8 bits, are multiplied.
    """

    name: FormatName
    group: int = 0
    zero_points: bool = False
    minima: bool = False
    super_group: int = 0

    def __post_init__(self) -> None:
        groups = self.elements.groups
        if groups and self.group not in (*groups, *self.elements.imported):
            raise ValueError(f"{self.name} has groups of {self.group}; expected {' or '.join(map(str, groups))}")
        if self.zero_points and self.elements.unsigned is None:
            raise ValueError(f"{self.name} has no zero points")
        if self.minima and (self.zero_points or not self.group or self.elements.unsigned is None):
            raise ValueError(f"{self.name} in groups of {self.group} has no minima")
        if self.super_group and (not self.group or self.super_group % self.group or not self.elements.whole):
            raise ValueError(f"{self.name} in groups of {self.group} has no scales of two levels")
        if self.group < 0 or (self.group and not self.quantized):
            raise ValueError(f"{self.name} has no groups of {self.group}")

    @property
    def elements(self) -> Elements:
        """The elements of the format."""
        return ELEMENTS[self.name]

    @property
    def quantized(self) -> bool:
        """Whether the format has scales."""
        return bool(self.elements.scales)

    @property
    def two_levels(self) -> bool:
        """Whether scales are products of codes and factors."""
        return bool(self.super_group) or self.elements.has_factors

    @property
    def level_types(self) -> tuple[ir.DataType, ir.DataType]:
        """The types of codes and of factors that :func:`moec.ir.weights.encode.encode` stores, in a format with these
        two levels."""
        if self.elements.has_factors:
            return self.scale_type, ir.DataType.FLOAT
        return ir.DataType.UINT8 if self.minima else ir.DataType.INT8, self.scale_type

    def span(self, inputs: int) -> int:
        """Groups of ``inputs`` that share a factor, in a format with scales of two levels."""
        return self.super_group // self.group if self.super_group else -(-inputs // self.group)

    @property
    def shared_outputs(self) -> int:
        """Consecutive outputs that share the scale of a group."""
        return self.group if self.group and self.group == self.elements.square else 1

    @property
    def data_type(self) -> ir.DataType:
        """The type of a stored element."""
        unsigned = self.elements.unsigned
        return unsigned if (self.zero_points or self.minima) and unsigned is not None else self.elements.signed

    @property
    def scale_type(self) -> ir.DataType:
        """The type of the scales that :func:`moec.ir.weights.encode.encode` stores: a small one for groups, whose many
        scales take space."""
        return self.elements.scales[bool(self.group)]

    @property
    def scale_bits(self) -> float:
        """Bits per scale of a group; with two levels these are one byte and a share of the factor."""
        each = self.scale_type.bitwidth
        return 8 + each * self.group / self.super_group if self.super_group else each

    @property
    def output_bits(self) -> int:
        """Bits of an output beside those of its weights and groups: of the factor of its scales, in nvfp4."""
        return ir.DataType.FLOAT.bitwidth if self.elements.has_factors else 0

    def bits_per_weight(self, inputs: int) -> float:
        """Bits of a weight, with its share of scales, zero points and minima. ``inputs``: of its matrix."""
        if not self.quantized:
            return float(self.elements.bits)
        each = self.scale_bits * (1 + self.minima) + (self.data_type.bitwidth if self.zero_points else 0)
        groups = -(-inputs // self.group) if self.group else 1
        return self.elements.bits + (each * groups / self.shared_outputs + self.output_bits) / inputs

    @staticmethod
    def parse(text: str) -> WeightFormat:
        """Read a format as :meth:`__str__` writes it. Raises ValueError for any other text."""
        match = _PRINTED.fullmatch(text)
        name = next((name for name in ELEMENTS if match is not None and name == match["name"]), None)
        if match is None or name is None:
            raise ValueError(f"no format {text[:40]!r}")
        only = ELEMENTS[name].groups if len(ELEMENTS[name].groups) == 1 else (0,)
        group = only[0] if match["group"] is None else int(match["group"])
        return WeightFormat(name, group, bool(match["zero"]), bool(match["minima"]), int(match["super"] or 0))

    def __str__(self) -> str:
        group = f"/{self.group}" if self.group and len(self.elements.groups) != 1 else ""
        group = f"{group}/{self.super_group}" if self.super_group else group
        return f"{self.name}{group}{'z' if self.zero_points else ''}{'m' if self.minima else ''}"


def name_of(dtype: ir.DataType, width: int | None = None, scale_type: ir.DataType | None = None) -> FormatName | None:
    """The format with elements of this type and width (None: all bits); the type of the scales decides between several.
    None if there is no such format."""
    names: list[FormatName] = [
        name
        for name, elements in ELEMENTS.items()
        if dtype in (elements.signed, elements.unsigned) and elements.width == width
    ]
    if len(names) > 1 and scale_type is not None:
        names = [name for name in names if ELEMENTS[name].takes_scales(scale_type)]
    return next(iter(names), None)
