"""Grouped matrix product: every block of rows times the weights of its own expert.

``out[r] = epilogue(bias[e] + rows[r] @ weights[e])`` for the rows r of every block of expert e. Rows are sorted by
expert; the list of blocks comes from :mod:`moec.targets.cpu.kernels.dispatch`.

A task is one block of rows times one tile of columns. The weights of the tile (K x two vectors, contiguous) are read
from memory once, prefetched, and stay in second-level cache while the rows of the block pass by in register tiles.
Tasks in the order of blocks, then tiles, are the order of the weights in memory; they are cut into shares of equal
work, and a thread takes neighbouring shares: it reads memory forwards, the end of each tile prefetches the next, and
all threads are busy to the end however skewed the routing is.
The rows of a block are cut into register tiles of nearly equal height, with code for every height up to the machine's
row tile: no row is computed in vain, and an expert with one row runs a matrix-vector product that streams its weights
exactly once. An output is one sum in a fixed order, whatever the number of threads.

Experts may differ in the format of their weights and in the numbers of their inputs and outputs: then a table says
where the tiles of each expert lie, and one launch computes them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.dispatch import BLOCK_ROWS
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, quotient
from moec.targets.cpu.kernels.gather import row_width
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.multiply import multiply
from moec.targets.cpu.kernels.tiled_format import TiledFormat
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.text.steps import begin_step

_TABLE_COLUMNS = ("format", "data", "scales", "inner", "width")
FLOAT32 = TiledFormat("float32")
SHARES = 240
"""Parts that the work is cut into, whatever the number of threads; most numbers of threads divide it."""
TILE_ROWS = 4
"""Cost of reading the weights of a tile, counted in rows multiplied by them."""


@dataclasses.dataclass(frozen=True)
class PackedProduct:
    """Static facts of a grouped product. ``width`` counts the outputs of a row: the columns of the weights, or the
    hidden units where a gate and an up column make one output (``gated``).

    ``formats``: the distinct formats of the weights; ``format_of``: which of them each expert has (empty: all have the
    first). ``inners`` and ``widths``: sizes expert by expert (empty: all have ``inner`` and ``width``, the largest).
    ``rows_have_zeros``: many inputs may be zero, and no weight is infinite or NaN.
    """

    experts: int
    inner: int
    width: int
    gated: bool
    machine: Machine
    formats: tuple[TiledFormat, ...] = (FLOAT32,)
    format_of: tuple[int, ...] = ()
    arithmetic: str = "float32"
    activation_group: int = 0
    inners: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    rows_have_zeros: bool = False

    @property
    def columns(self) -> int:
        """Columns of weights per tile; the first half are gate columns, the second up columns, where gated."""
        return self.machine.column_tile

    @property
    def tile_width(self) -> int:
        """Outputs per tile."""
        return self.columns // 2 if self.gated else self.columns

    @property
    def column_tiles(self) -> int:
        return self.tiles_for(self.width)

    def tiles_for(self, width: int) -> int:
        return -(-width // self.tile_width)

    @property
    def padded_width(self) -> int:
        return self.column_tiles * self.tile_width

    @property
    def multiplications(self) -> list[Multiplication]:
        """The multiplication of each format, in the order of ``formats``."""
        how = self.arithmetic, self.activation_group, self.rows_have_zeros
        return [Multiplication(self.machine, stored, *how) for stored in self.formats]

    @property
    def skips_zeros(self) -> bool:
        """Whether a block of few rows may be multiplied by a list of its nonzero inputs."""
        return any(product.skips_zeros for product in self.multiplications)

    @property
    def padded_inner(self) -> int:
        """Number of inputs up to which rows are padded with zeros: enough for every format."""
        return max(product.padded(self.inner) for product in self.multiplications)

    @property
    def uniform(self) -> bool:
        """Whether all experts have one format and one size, so that no table is needed."""
        return len(self.formats) == 1 and not self.inners and not self.widths

    def sizes(self, expert: int) -> tuple[int, int, int]:
        """Format, inputs and outputs of one expert."""
        stored = self.format_of[expert] if self.format_of else 0
        inner = self.inners[expert] if self.inners else self.inner
        return stored, inner, self.widths[expert] if self.widths else self.width

    def experts_in(self, index: int) -> list[int]:
        """The experts that have the ``index``-th format."""
        return [expert for expert in range(self.experts) if self.sizes(expert)[0] == index]

    def tile_sizes(self, expert: int) -> tuple[int, int]:
        """Elements of data and of scales in one tile of an expert."""
        stored, inner, _ = self.sizes(expert)
        product = self.multiplications[stored]
        return product.tile_elements(inner), product.tile_scales(inner)

    def lengths(self, index: int) -> tuple[int, int]:
        """Elements of data and of scales of all experts that have the ``index``-th format."""
        lengths = [0, 0]
        for expert in self.experts_in(index):
            tiles = self.tiles_for(self.sizes(expert)[2])
            for part, size in enumerate(self.tile_sizes(expert)):
                lengths[part] += tiles * size
        return lengths[0], lengths[1]

    def table(self) -> np.ndarray:
        """int64 [E, 5]: format, where data and scales start, padded inputs, outputs."""
        rows = np.zeros((self.experts, len(_TABLE_COLUMNS)), np.int64)
        starts = [[0, 0] for _ in self.formats]
        for expert in range(self.experts):
            stored, inner, width = self.sizes(expert)
            tiles = self.tiles_for(width)
            rows[expert] = (stored, *starts[stored], self.multiplications[stored].padded(inner), width)
            for part, size in enumerate(self.tile_sizes(expert)):
                starts[stored][part] += tiles * size
        return rows

    @property
    def bias_shape(self) -> tuple[int, int, int]:
        return (self.experts, self.column_tiles, self.columns)


def row_parameters(problem: PackedProduct, input_width: int) -> list[Parameter]:
    """The left factor, as :mod:`moec.targets.cpu.kernels.gather` and :mod:`.quantize_rows` make it."""
    if problem.arithmetic != "int8":
        return [Parameter("rows", ("R", input_width), problem.arithmetic)]
    return [
        Parameter("rows", ("R", input_width), "int8"),
        Parameter("row_scales", ("R", "row_groups"), "float32"),
        Parameter("row_sums", ("R", "sum_groups"), "int32"),
    ]


def weight_parameters(problem: PackedProduct) -> list[Parameter]:
    """The right factor: of every format its flat arrays, then the table of experts that differ, then the crossover."""
    parameters = []
    for index, stored in enumerate(problem.formats):
        data, scales = problem.lengths(index)
        parameters.append(Parameter(f"weights{index}", (data,), stored.storage))
        if not stored.is_float:
            parameters.append(Parameter(f"scales{index}", (scales,), stored.scale_storage))
        if stored.zero_points:
            parameters.append(Parameter(f"zeros{index}", (scales,), "uint8"))
        if stored.minima:
            parameters.append(Parameter(f"minima{index}", (scales,), stored.scale_storage))
        for table in ("scale", *(["minimum"] if stored.minima else [])) if stored.super_group else ():
            parameters.append(Parameter(f"{table}_factors{index}", (scales // stored.span,), stored.scale))
    if not problem.uniform:
        parameters.append(Parameter("table", (problem.experts, len(_TABLE_COLUMNS)), "int64"))
    if any(product.tiles_used for product in problem.multiplications):
        parameters.append(Parameter("crossover", (1,), "int32"))
    return parameters


def out_width(problem: PackedProduct, filled: int, dtype: str) -> int:
    """Elements from one row of the result to the next."""
    return row_width(max(problem.padded_width, filled), 2 if dtype == "bfloat16" else 4)


class _GroupedProduct:
    """The code of one kernel, while it is emitted."""

    def __init__(self, problem: PackedProduct, epilogue: Callable[..., Any], scattered: bool, filled: int) -> None:
        self._problem, self._epilogue = problem, epilogue
        self._scattered, self._filled = scattered, filled

    def emit(self, order: Any, blocks: Any, block_count: Any, bias: Any, out: Any, **operands: Any) -> None:
        problem = self._problem
        rows = Rows(operands["rows"], operands.get("row_scales"), operands.get("row_sums"))
        with loop("share", T.parallel(self._shares(block_count[0]))) as share:
            begin_step("the share of the work: tiles of columns, weighed by rows")
            start, stop = self._work_of(share, blocks, block_count[0])
            with loop("block", T.serial(block_count[0])) as block:
                expert, first, count = (
                    named(name, T.bind(T.cast(blocks[block, part], "int64")))
                    for part, name in enumerate(("expert", "first", "count"))
                )
                per_tile = named("work_per_tile", T.bind(count + TILE_ROWS))
                before = named(
                    "work_before", T.bind((first + T.cast(block, "int64") * TILE_ROWS) * problem.column_tiles)
                )
                meets = T.And(before < stop, before + per_tile * problem.column_tiles > start)
                with T.If(meets), T.Then():
                    begin = named("begin", T.bind(self._first_tile(start - before, per_tile)))
                    end = named("end", T.bind(self._first_tile(stop - before, per_tile)))
                    with loop("column_tile", T.serial(begin, end)) as column_tile:
                        sums = named("sums", T.alloc_buffer((BLOCK_ROWS, problem.columns), "float32"))
                        begin_step("rows of the block, times a tile of the expert's columns")
                        for condition, product, weights, tile in self._ways(operands, expert, column_tile):
                            with T.If(condition), T.Then():
                                multiply(product, rows, weights, tile, sums, first, count)
                        begin_step("bias and activation of the sums, stored")
                        width = operands["table"][expert, _TABLE_COLUMNS.index("width")] if problem.widths else None
                        self._store(sums, order, bias, out, expert, column_tile, first, count, width)

    def _shares(self, blocks: Any) -> Any:
        """Number of shares that the work is cut into, at most the number of tiles."""
        return T.min(SHARES, T.cast(blocks, "int64") * self._problem.column_tiles)

    def _work_of(self, share: Any, blocks: Any, block_count: Any) -> tuple[Any, Any]:
        """Start and end of a share, in units of work.

        Work is counted in rows: a tile counts as the rows of its block plus :data:`TILE_ROWS` for its weights. Blocks
        are contiguous, so the work before a block follows from its first row.
        """
        last, shares = block_count - 1, self._shares(block_count)
        rows = T.cast(blocks[last, 1] + blocks[last, 2], "int64")
        work = (rows + T.cast(block_count, "int64") * TILE_ROWS) * self._problem.column_tiles
        total = named("total_work", T.bind(work))
        start = named("start", T.bind(quotient(share * total, shares)))
        return start, named("stop", T.bind(quotient((share + 1) * total, shares)))

    def _first_tile(self, work: Any, per_tile: Any) -> Any:
        """First tile of a block with at least ``work`` before it in the block."""
        tiles = quotient(T.max(work, T.int64(0)) + per_tile - 1, per_tile)
        return T.min(tiles, T.int64(self._problem.column_tiles))

    def _ways(
        self, operands: dict[str, Any], expert: Any, column_tile: Any
    ) -> Iterator[tuple[Any, Multiplication, Weights, WeightTile]]:
        """Yield for every format the condition that the expert has it, the multiplication, the arrays and the tile."""
        problem = self._problem
        for index, product in enumerate(problem.multiplications):
            crossover = T.cast(operands["crossover"][0], "int64") if product.tiles_used else None
            weights = Weights.of(operands, index, crossover)
            if problem.uniform:
                data, scales = problem.tile_sizes(0)
                place = expert * problem.column_tiles + column_tile
                starts = named("data_start", T.bind(place * data)), named("scales_start", T.bind(place * scales))
                tile = WeightTile(*starts, product.padded(problem.inner))
                yield T.bool(True), product, weights, tile
                continue
            row = {name: operands["table"][expert, position] for position, name in enumerate(_TABLE_COLUMNS)}
            inner = named("inner", T.bind(row["inner"]))
            data = named("data", T.bind(row["data"] + column_tile * product.tile_elements_of(inner)))
            scales = named("scales", T.bind(row["scales"] + column_tile * product.tile_scales_of(inner)))
            chosen = T.And(row["format"] == index, column_tile * problem.tile_width < row["width"])
            yield chosen, product, weights, WeightTile(data, scales, inner)

    def _store(
        self,
        sums: Any,
        order: Any,
        bias: Any,
        out: Any,
        expert: Any,
        column_tile: Any,
        first: Any,
        count: Any,
        width: Any | None,
    ) -> None:
        """Emit the stores of a tile's results. ``width``: that of the expert, from which on columns are 0; None where
        all experts have the same."""
        problem = self._problem
        with loop("row", T.serial(count)) as row:
            target = self._target(order, first + row)
            with loop("j", T.vectorized(problem.tile_width)) as j:
                value = self._finished(sums, lambda column: bias[expert, column_tile, column], row, j)
                if width is not None:
                    value = T.Select(column_tile * problem.tile_width + j < width, value, T.float32(0))
                T.buffer_store(sums, value, [row, j])
            # In a loop of its own, because a conversion to bfloat16 repeats its operand.
            with loop("j", T.vectorized(problem.tile_width)) as j:
                place = [target, column_tile * problem.tile_width + j]
                T.buffer_store(out, T.cast(sums[row, j], out.dtype), place)
        missing = self._filled - problem.padded_width
        if missing > 0:
            with T.If(column_tile == problem.column_tiles - 1), T.Then(), loop("row", T.serial(count)) as row:
                target = self._target(order, first + row)
                with loop("j", T.serial(missing)) as j:
                    T.buffer_store(out, T.cast(T.float32(0), out.dtype), [target, problem.padded_width + j])

    def _target(self, order: Any, row: Any) -> Any:
        """Row of the output that gets the result of ``row``."""
        return named("target", T.bind(T.cast(order[row], "int64") if self._scattered else row))

    def _finished(self, sums: Any, bias: Callable[[Any], Any], row: Any, column: Any) -> Any:
        """The output of one row and column of a tile."""
        if not self._problem.gated:
            return self._epilogue(sums[row, column] + bias(column))
        up = column + self._problem.tile_width
        return self._epilogue(sums[row, column] + bias(column), sums[row, up] + bias(up))


def grouped_gemm(
    problem: PackedProduct,
    epilogue: Callable[..., Any],
    *,
    input_width: int,
    scattered: bool,
    filled: int = 0,
    out_dtype: str = "float32",
) -> tirx.PrimFunc:
    """``(rows[R, input_width] (, row_scales, row_sums), order[P], blocks[B, 3], block_count[1], weights..., bias,
    out[Q, out_width])``.

    The first ``padded_inner`` of the ``input_width`` columns of ``rows`` are used. ``epilogue(gate, up)`` of a gated
    problem, else ``epilogue(sum)``, maps expressions to an expression. The result of row r goes to row ``order[r]`` if
    ``scattered`` (back to the order of the pairs), else to row r, padded with zeros up to column ``filled``. Rows in
    no block are not written. All sizes may be 0. With matrix tiles, up to 31 rows after those of a block are read:
    R has to be that much larger than P (:data:`moec.targets.cpu.kernels.gather.SPARE_ROWS`).
    """
    parameters: Sequence[Parameter] = [
        *row_parameters(problem, input_width),
        Parameter("order", ("P",), "int32"),
        Parameter("blocks", ("B", 3), "int32"),
        Parameter("block_count", (1,), "int32"),
        *weight_parameters(problem),
        Parameter("bias", problem.bias_shape, "float32"),
        Parameter("out", ("Q", out_width(problem, filled, out_dtype)), out_dtype),
    ]
    functions = "".join(sorted({product.llvm_functions for product in problem.multiplications}))
    return emit_kernel(parameters, _GroupedProduct(problem, epilogue, scattered, filled).emit, functions)


def _how(problem: PackedProduct) -> str:
    differing = "" if problem.uniform else "experts differ in format or size: a table says where their tiles lie; "
    return f"{differing}{'; '.join(product.how for product in problem.multiplications)}"


def _why_no_gate(problem: PackedProduct, machine: Machine) -> str | None:
    return None if problem.gated else "there is no gate in this product"


def _why_not_plain(problem: PackedProduct, machine: Machine) -> str | None:
    if not problem.gated:
        return None
    return f"the gate would need a product and a result of {problem.width} columns per pair of its own"


GROUPED_GEMM_GATED = Kernel(
    "grouped_gemm_gated",
    "out[r] = activation(rows[r] @ gate[e] + bias) * (rows[r] @ up[e] + bias), e the expert of row r",
    grouped_gemm,
    how=lambda problem, _: f"gate and up columns share a tile; {_how(problem)}",
    why_not=_why_no_gate,
)
GROUPED_GEMM = Kernel(
    "grouped_gemm",
    "out[r] = activation(rows[r] @ weight[e] + bias[e]), e the expert of row r",
    grouped_gemm,
    how=lambda problem, _: _how(problem),
    why_not=_why_not_plain,
)
