"""Layout of a product's weights in memory: the element format, its scales, and the tile order of both.

Weights of one expert are cut into tiles of ``columns`` columns (two vector registers of float32). A tile is contiguous
and all of K, so that a product reads it in one forward stream:

==================  ================================  ==================================================================
format              tile                              one number
==================  ================================  ==================================================================
float32, float16    [K, columns]                      itself
bfloat16            [K / 2, columns, 2]               itself; pairs of K as dot instructions and matrix tiles take them
int8                [K / 4, columns, 4]               (byte - zero point) * scale, quads of K
int4                [K / 4, columns / 2, 4]           as int8;  low halves are the first vector, high halves the second
floats of 4 bits    [K / 4, columns / 2, 4]           as int4:  the 4 bits are the OCP code e2m1 of the number
iq4                 [K / 4, columns / 2, 4]           as int4:  the 4 bits are the place of the number in a table
int6                [K / 8, 3, columns / 2, 4]        as int8;  the lower four bits of 8 inputs as int4, then the upper
                                                      two: from the lowest on those of the first and second vector of
                                                      a quad of K, then those of the next
int5                [K / 16, 5, columns / 2, 4]       as int8;  the lower four bits of 16 inputs as int4, then the
                                                      fifth ones as there
int2                [K / 8, columns / 2, 4]           as int8;  from the lowest bits on the first and second vector of
                                                      a quad of K, then those of the next
int3                [K / 16, 3, columns / 2, 4]       as int8;  the lower two bits of 16 inputs as int2, then the third
                                                      bits: from the lowest on, quad by quad, as there
floats of 8 bits    [K / 4, columns, 4]               the OCP code e4m3 of the byte, times scale
==================  ================================  ==================================================================

Integers of another width follow the same rule (:attr:`TiledFormat.planes`): their lowest bits by fours or twos, then
what is left, plane by plane.

Integers are stored unsigned because the dot instructions of x86 and Arm multiply unsigned by signed bytes, and the
activations are the signed ones. Symmetric weights have the middle of the range as their zero point, known to the code;
others bring a table. Scales, minima and zero points: [tile, groups of K, columns]. Of scales and minima of two levels
these are the codes, and factors are [tile, super-groups of K, columns]; tiles have whole super-groups.
Scales have the type that they are stored in, but are float16 where that holds all of a format exactly.
"""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from moec.common.dtypes import dtype_of
from moec.common.errors import UnsupportedError
from moec.ir.weights.stored import WeightRun
from moec.targets.tvm.kernels.stored_format import SCALE_TYPES, StoredFormat

_CODES = {ir.DataType.INT8: "int8", ir.DataType.UINT8: "uint8", ir.DataType.FLOAT8E4M3FN: "float8_e4m3fn"}
_MOST_INPUTS_OF_A_FACTOR = 256
E2M1_HALVES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The numbers of the 16 codes of float4 e2m1, in halves: whole numbers, which integer products compute exactly."""


@dataclasses.dataclass(frozen=True)
class TiledFormat(StoredFormat):
    """A format with this module's layout.

    ``super_group``: consecutive inputs whose scales, and minima, are bytes of type ``codes`` times one float of type
    ``scale``; 0 where scales are floats. The one factor of an output in nvfp4 is repeated, so that no row is padded."""

    super_group: int = 0
    codes: str = "uint8"

    @classmethod
    def of(cls, run: WeightRun) -> TiledFormat:
        """The format of a run of weights. Raises UnsupportedError also for groups that split the inputs of a step."""
        tiled, levels = super().of(run), run.levels("scale")
        if tiled.group % tiled.step:
            raise UnsupportedError(
                f"weights are {tiled.name}; kernels for CPUs read {tiled.step} inputs with one scale: expected groups "
                f"of a multiple of {tiled.step}"
            )
        if levels is None:
            return tiled
        assert levels.factors.dtype is not None and levels.codes.dtype is not None
        scale, codes = SCALE_TYPES[levels.factors.dtype], _CODES[levels.codes.dtype]
        assert run.axis is not None
        padded = -(-run.shape[run.axis] // tiled.group) * tiled.group
        together = run.format.super_group or math.gcd(padded, _MOST_INPUTS_OF_A_FACTOR)
        return dataclasses.replace(tiled, scale=scale, super_group=together, codes=codes)

    @property
    def step(self) -> int:
        """Consecutive inputs (K) of one column that are contiguous in memory."""
        if self.is_float:
            return 2 if self.element == "bfloat16" else 1
        return 4

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """The first bit of a number that each plane holds, and how many: those of a plane are packed next to those of
        the number's neighbours, and the planes of a unit of packing follow one another."""
        counts = [bits for bits in (8, 4, 2, 1) if bits & self.bits]
        return tuple((sum(counts[:place]), bits) for place, bits in enumerate(counts))

    @property
    def quads(self) -> int:
        """Quads of inputs in a unit of packing: as many as fill a word of the narrowest plane."""
        return max(4 // self.planes[-1][1], 1)

    @property
    def zero(self) -> int:
        """The stored number that means zero where no table says otherwise."""
        if numbers := self._looked_up:
            return -min(numbers)
        return 1 << (self.bits - 1) if self.is_whole else 0

    @property
    def table(self) -> tuple[int, ...]:
        """The number of each code plus :attr:`zero`, where numbers are looked up; empty where they are the codes."""
        return tuple(number + self.zero for number in self._looked_up)

    @property
    def _looked_up(self) -> tuple[int, ...]:
        return E2M1_HALVES if self.is_e2m1 else self.numbers

    @property
    def scale_storage(self) -> str:
        if not self.super_group:
            return super().scale_storage
        return "uint8" if self.has_float_codes else self.codes

    @property
    def has_float_codes(self) -> bool:
        """Whether codes of scales are floats of 8 bits."""
        return self.codes == _CODES[ir.DataType.FLOAT8E4M3FN]

    @property
    def span(self) -> int:
        """Groups that share a factor."""
        return self.super_group // self.group

    @property
    def name(self) -> str:
        name = super().name
        return f"{name[:-1]}, of two levels by {self.super_group})" if self.super_group else name

    def bits_per_weight(self, inner: int) -> float:
        factors = dtype_of(self.scale).itemsize * 8 * (1 + self.minima) / self.super_group if self.super_group else 0.0
        return super().bits_per_weight(inner) + factors

    @property
    def storage(self) -> str:
        """Element type of the packed array."""
        return self.element if self.is_float else "uint8"
