"""Plans: the partition of a kernel's work among blocks and threads, for predictions of its time.

A kernel states its plan when it is compiled, and the artifact stores it with the kernel's launches. Predictions follow
from plans alone, never from names or descriptions of kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from moec.common.dtypes import dtype_of
from moec.common.errors import ArtifactError
from moec.common.records import FieldRule, read_variant

if TYPE_CHECKING:
    from moec.targets.cuda.kernels.grouped_problem import GroupedProblem

TOKENS, SLOTS = "tokens", "slots"
"""Names of the dynamic sizes of routing weights [T, k] in kernels of experts."""
MULTIPROCESSORS = "multiprocessors"
"""Name of the GPU's number of multiprocessors in expressions of launches."""
ROWS = "M"
"""Name of the number of rows in kernels of dense products."""
LARGEST = 2**40
"""The largest valid size or number in a plan; larger ones are rejected."""
_AT_LEAST_0 = FieldRule(lambda number: 0 <= number <= LARGEST, f"a number from 0 to {LARGEST}")
_ABOVE_0 = FieldRule(lambda number: 0 < number <= LARGEST, f"a number above 0 and up to {LARGEST}")
Count, Ratio = Annotated[int, _AT_LEAST_0], Annotated[float, _AT_LEAST_0]
Extent, Share = Annotated[int, _ABOVE_0], Annotated[float, _ABOVE_0]
Unit = Literal["wgmma", "mma", "fma"]
"""The unit that multiplies: tensor cores by ``wgmma`` or ``mma``, or multiply-adds without tensor cores."""


@dataclasses.dataclass(frozen=True)
class ProductPlan:
    """A product of rows [inner] with ``experts`` matrices [columns, inner]; a row of the result has ``width`` numbers.

    ``dtype``: type in which numbers are multiplied; ``weight_bits``: stored bits per number of the matrix, including
    scales; ``row_bytes`` and ``out_bytes``: bytes per number of the rows and of the result; ``gathered``: whether rows
    are read from tokens, so that the pairs of a token share one row.
    """

    experts: Extent
    inner: Extent
    columns: Extent
    width: Extent
    dtype: str
    weight_bits: Share
    row_bytes: Extent
    out_bytes: Extent
    gathered: bool

    @staticmethod
    def of(problem: GroupedProblem) -> ProductPlan:
        return ProductPlan(
            problem.experts,
            problem.inner,
            problem.columns,
            problem.width,
            problem.dtype,
            8 * problem.matrix_bytes / (problem.columns * problem.inner),
            dtype_of(problem.dtype).itemsize,
            dtype_of(problem.out_dtype).itemsize,
            problem.gathered,
        )

    @property
    def matrix_bytes(self) -> float:
        """Bytes of the matrix of one expert."""
        return self.columns * self.inner * self.weight_bits / 8


class _Recorded:
    """The implementation of :class:`moec.targets.base.Plan` for plans, which are dataclasses."""

    def as_data(self) -> dict[str, Any]:
        kind = next(name for name, plan_type in _PLANS.items() if type(self) is plan_type)
        return {"kind": kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True)
class TilePlan(_Recorded):
    """The plan of a kernel whose blocks compute tiles of ``rows`` x ``columns``, in k-tiles of ``inputs`` inputs, with
    ``stages`` k-tiles in flight or in use.

    - ``copying_warps``: warps of a block that only copy k-tiles.
    - ``persistent``: whether a block computes several tiles, and starts copying the next one before it stores the last.
    - ``groups``: groups of the other warps, each with a tile of its own; one multiplies while another stores.
    - ``cluster``: blocks that share one copy of the matrix.
    - ``band``: blocks of rows that are multiplied with the same columns of a matrix before any continues with the next
      columns.
    - ``divides_inputs``: whether several blocks share a tile, each with a part of the inputs; the grid says how many.
    """

    product: ProductPlan
    rows: Extent
    columns: Extent
    inputs: Extent
    stages: Extent
    unit: Unit
    copying_warps: Count = 0
    persistent: bool = False
    cluster: Extent = 1
    groups: Extent = 1
    band: Extent = 1
    divides_inputs: bool = False


@dataclasses.dataclass(frozen=True)
class WarpPlan(_Recorded):
    """The plan of a kernel whose warps each multiply ``rows`` rows with ``columns`` columns of the matrix; a block has
    ``warps`` warps.

    - ``inputs``: numbers of each column that a lane reads in a step.
    - ``ahead``: steps that are read before the first is used.
    - ``multiply_adds``: multiply-adds per number of the matrix and row, including those that decode the number.
    - ``side_by_side``: whether all rows are multiplied with some columns of the matrix before any continues with the
      next columns.
    """

    product: ProductPlan
    warps: Extent
    columns: Extent
    inputs: Extent
    rows: Extent = 1
    ahead: Count = 1
    multiply_adds: Share = 1
    side_by_side: bool = False


@dataclasses.dataclass(frozen=True)
class MemoryBoundPlan(_Recorded):
    """The plan of a kernel that reads and writes tensors once.

    - ``read`` and ``written``: the tensors, by the names of the kernel's parameters.
    - ``load_bytes``: bytes of one load of a thread; ``loads``: loads that it issues before it uses the first result.
    - ``read_of_pair`` and ``written_of_pair``: further bytes per pair of token and expert, for tensors of which not all
      rows are in use.
    - ``most_read`` and ``most_written``: for each tensor the most numbers that are moved, as a C expression of the
      kernel's sizes; empty if there is no such limit.
    """

    read: tuple[str, ...]
    written: tuple[str, ...]
    load_bytes: Extent = 4
    loads: Extent = 1
    read_of_pair: Count = 0
    written_of_pair: Count = 0
    most_read: tuple[str, ...] = ()
    most_written: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class WalkPlan(_Recorded):
    """The plan of a kernel whose warps take dependent steps one after another.

    - ``steps``: of a warp, as a C expression of the kernel's sizes.
    - ``memory_waits``: waits for memory in a step; ``exchanges``: waits for shared memory or other lanes in a step.
    - ``moved``: tensors that are read or written, by the names of the kernel's parameters; empty for all of them.
    """

    steps: str
    memory_waits: Ratio = 1.0
    exchanges: Ratio = 0.0
    moved: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class AttentionPlan(_Recorded):
    """The plan of an attention, whose blocks each have ``rows`` queries of the ``heads`` that share keys, and walk over
    tiles of ``keys`` keys up to the last one that their queries see.

    - ``dtype``: of the queries; ``row_bytes``: bytes per number of queries and results; ``key_bytes``: of keys and
      values.
    - ``columns``: columns of the values of a block; ``slices``: blocks that share the columns of a row.
    - ``causal``: which keys a query sees, as in :class:`~moec.targets.tvm.lower.attention.AttentionProblem`.
    - ``waits``: dependent loads of a tile; ``ahead``: whether they overlap with computing the preceding tile.
    - ``weighs_meanwhile``: whether weights are computed while tensor cores multiply.
    - ``copying_warps``: warps of a block that only copy keys and values.
    - ``sequences``, ``queries``, ``held`` and ``parts``: C expressions of the kernel's sizes. There are as many
      sequences as sets of keys (batches times heads of keys); each has ``queries`` queries and ``held`` keys, which are
      divided into ``parts`` parts.
    """

    dtype: str
    row_bytes: Extent
    key_bytes: Extent
    head_size: Extent
    columns: Extent
    slices: Extent
    heads: Extent
    causal: str
    rows: Extent
    keys: Extent
    unit: Unit
    sequences: str
    queries: str
    held: str
    parts: str = "1"
    waits: Extent = 1
    ahead: bool = True
    weighs_meanwhile: bool = False
    copying_warps: Count = 0

    @property
    def best_unit(self) -> Unit:
        """The best unit for numbers of this type, whichever the kernel uses."""
        return "fma" if self.dtype == "float32" else "mma"


LaunchPlan = TilePlan | WarpPlan | AttentionPlan | MemoryBoundPlan | WalkPlan
_PLANS: dict[str, type[LaunchPlan]] = {
    "tiles": TilePlan,
    "warps": WarpPlan,
    "attention": AttentionPlan,
    "stream": MemoryBoundPlan,
    "walk": WalkPlan,
}


def parse_plan(data: Mapping[str, Any] | None, where: str) -> LaunchPlan | None:
    """The plan stored in an artifact; None if there is none. Raises ArtifactError for data that moec did not write."""
    if data is None:
        return None
    return read_variant(_PLANS, "kind", data, f"{where}: plan", "compile the model again", ArtifactError)
