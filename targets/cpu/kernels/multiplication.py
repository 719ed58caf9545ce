"""Products of rows with stored weights: their operands, and the layout of these on a machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels import matrix_tile
from moec.targets.cpu.kernels.dot import pair_functions
from moec.targets.cpu.kernels.tiled_format import TiledFormat

_CROSSOVER_ROWS = {(False, False): 8, (True, False): 16, (False, True): 16, (True, True): 48}
"""By whether weights have fewer than 8 bits, and whether few of them share a scale."""
_SMALL_GROUP = 32


def crossover_rows(arithmetic: str, stored: TiledFormat) -> int:
    """Estimate the rows of a block from which matrix tiles beat dot instructions; ``moec tune`` measures it.

    Before the tiles begin, weights of few bits are decoded in memory, and sums of each group of weights that share a
    scale go through memory. Numbers are those measured on a Xeon with AMX, with weights that caches hold: layers of
    Granite's shape, products of SmolLM2's.
    """
    if arithmetic == "bfloat16":
        return 3
    return _CROSSOVER_ROWS[stored.bits < 8, 0 < stored.group <= _SMALL_GROUP]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The left operand, padded with zeros to the padded number of inputs. ``scales`` [rows, groups] (float32) and
    ``sums`` [rows, groups] (int32) belong to int8 rows."""

    values: Any
    scales: Any = None
    sums: Any = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """The right operand: flat buffers of contiguous tiles.

    ``crossover``: rows of a block from which on matrix tiles are used; None where the product has none."""

    data: Any
    scales: Any = None
    zeros: Any = None
    minima: Any = None
    crossover: Any = None
    scale_factors: Any = None
    minimum_factors: Any = None

    @staticmethod
    def of(operands: Mapping[str, Any], index: int, crossover: Any) -> Weights:
        """The weights of the ``index``-th format, taken from the operands of a kernel by name."""
        names = "scales", "zeros", "minima", "scale_factors", "minimum_factors"
        tables = {name: operands.get(f"{name}{index}") for name in names}
        return Weights(operands[f"weights{index}"], crossover=crossover, **tables)


@dataclasses.dataclass(frozen=True)
class WeightTile:
    """One tile of the right operand: the starts of its data and of its scales, and its padded number of inputs (K)."""

    data: Any
    scales: Any
    inner: Any


@dataclasses.dataclass(frozen=True)
class Multiplication:
    """A way to compute products with weights of one stored format on one machine."""

    machine: Machine
    stored: TiledFormat
    arithmetic: str = "float32"
    activation_group: int = 0
    rows_have_zeros: bool = False
    """Whether many inputs may be zero and no weight is infinite or NaN."""

    @property
    def columns(self) -> int:
        return self.machine.column_tile

    @property
    def vectors(self) -> int:
        """Vector registers of 32-bit numbers that hold one row of a tile's columns."""
        return self.columns // self.machine.lanes

    @property
    def skips_zeros(self) -> bool:
        """Whether few rows with many zeros are multiplied by a list of the other inputs (:mod:`.sparse_rows`).

        Not for quantised weights, which are read and decoded in quads of inputs: few quads are all zero."""
        return self.rows_have_zeros and self.stored.is_float and self.arithmetic != "int8"

    @property
    def tiles_used(self) -> bool:
        """Whether blocks with many rows use the machine's matrix tiles."""
        if self.arithmetic == "float32" or self.columns != matrix_tile.ROWS:
            return False
        element = "bfloat16" if self.arithmetic == "bfloat16" else "int8"
        group_fits = self.dot_group == 0 or self.dot_group % 64 == 0 or self.dot_group in (16, 32)
        return group_fits and matrix_tile.can_multiply(self.machine, element)

    @property
    def row_tile(self) -> int:
        """Most rows of a register tile; half as many where the integer sums of a group share the registers with the
        float32 sums of the groups."""
        return self.machine.row_tile // (2 if self.arithmetic == "int8" and self.stored.group else 1)

    @property
    def row_dtype(self) -> str:
        return self.arithmetic

    @property
    def dot_group(self) -> int:
        """Consecutive inputs whose products are summed before they are scaled; 0: all."""
        return self.stored.group or self.activation_group

    @property
    def step_bytes(self) -> int:
        """Bytes of K per multiplication of matrix tiles."""
        return self.dot_group if self.arithmetic == "int8" and self.dot_group in (16, 32) else 64

    @property
    def inner_multiple(self) -> int:
        """Divisor of the padded number of inputs; rows are zero in the padding."""
        if self.stored.super_group:
            return math.lcm(self.stored.super_group, self.activation_group or 1)
        if self.arithmetic == "int8":
            return self.activation_group or self.stored.group or (64 if self.tiles_used else 4)
        if self.arithmetic == "bfloat16":
            return 32 if self.tiles_used else 2
        return self.stored.group or self.stored.step

    def padded(self, inner: int) -> int:
        return -(-inner // self.inner_multiple) * self.inner_multiple

    def tile_elements(self, inner: int) -> int:
        """Elements of the packed array per tile."""
        return self.tile_elements_of(self.padded(inner))

    def tile_elements_of(self, padded: Any) -> Any:
        """Elements of the packed array per tile, from the padded number of inputs, which may be an expression."""
        return padded * self.columns if self.stored.is_float else padded * self.columns * self.stored.bits // 8

    def tile_scales(self, inner: int) -> int:
        """Scales per tile."""
        return self.tile_scales_of(self.padded(inner))

    def tile_scales_of(self, padded: Any) -> Any:
        if self.stored.is_float:
            return 0
        return (padded // self.stored.group if self.stored.group else 1) * self.columns

    @property
    def groups_per_scale(self) -> int:
        """Groups of weights that share a scale of an int8 row, where a row has several scales."""
        return self.activation_group // self.dot_group

    @property
    def llvm_functions(self) -> str:
        """Functions as LLVM IR that a kernel with this product has to import."""
        return pair_functions(self.machine) if self.stored.step == 2 else ""

    @property
    def requirements(self) -> tuple[str, ...]:
        """Features of the processor that the code uses beyond those of any code for the machine."""
        if not self.tiles_used:
            return ()
        return ("amx-tile", "amx-bf16" if self.arithmetic == "bfloat16" else "amx-int8")

    @property
    def how(self) -> str:
        """Description in words, for the record of the selection."""
        tile = f"register tile of {self.row_tile} rows x {self.columns} columns ({self.machine.name})"
        if self.tiles_used:
            tile = f"{tile}, matrix tiles of {matrix_tile.ROWS} x {matrix_tile.ROWS} from the crossover up"
        if self.skips_zeros:
            tile = f"{tile}, by a list of the nonzero inputs where few rows have few"
        return f"{self.stored.name} weights, {self.arithmetic} rows; {tile}"
