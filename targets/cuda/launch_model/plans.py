"""How kernels share out their work, as they say themselves when they are compiled; the artifact keeps it with their
launches. What is predicted follows from this alone, never from names or words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from moec.common.dtypes import dtype_of
from moec.errors import ArtifactError

if TYPE_CHECKING:
    from moec.targets.cuda.kernels.grouped_problem import GroupedProblem

TOKENS, SLOTS = "tokens", "slots"
"""What kernels of experts call the dynamic sizes of their routing weights [T, k]."""
MULTIPROCESSORS = "multiprocessors"
"""What expressions of launches call the number that the GPU has."""
ROWS = "M"
"""What kernels of dense products call the number of their rows."""
LARGEST = 2**40
"""Sizes and numbers above are none."""
Unit = Literal["wgmma", "mma", "fma"]
"""What multiplies: tensor cores by the one or the other instruction, or no tensor cores."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of rows [inner] with ``experts`` matrices [columns, inner]; a row of the result has ``width`` numbers.

    ``dtype``: what is multiplied; ``weight_bits``: of a number of the matrix as it is stored, scales included;
    ``row_bytes`` and ``out_bytes``: of a number of the rows and of the result. ``gathered``: rows are those of tokens,
    which have as many each as they have experts.
    """

    experts: int
    inner: int
    columns: int
    width: int
    dtype: str
    weight_bits: float
    row_bytes: int
    out_bytes: int
    gathered: bool

    @staticmethod
    def of(problem: GroupedProblem) -> Product:
        return Product(
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
        """Of one expert."""
        return self.columns * self.inner * self.weight_bits / 8


class _Recorded:
    """A plan, which is a dataclass, as :class:`moec.targets.base.Plan` says."""

    def as_data(self) -> dict[str, Any]:
        kind = next(name for name, one in _PLANS.items() if type(self) is one)
        return {"kind": kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True)
class TilePlan(_Recorded):
    """A block of threads computes tiles of ``rows`` x ``columns``, ``inputs`` at a time, with ``stages`` of k-tiles.

    ``copying_warps`` of its warps only bring k-tiles. ``persistent``: a block computes tiles one after another, and
    begins to copy the next one before it has stored the last; where its other warps are in several ``groups``, each
    with a tile of its own, one multiplies while another stores. ``cluster``: blocks that get one copy of the matrix
    together. ``band``: blocks of rows that get the same columns of a matrix one after another, before any gets the
    next ones. ``divides_inputs``: as many blocks as the grid has for a tile multiply a part of its inputs each.
    """

    product: Product
    rows: int
    columns: int
    inputs: int
    stages: int
    unit: Unit
    copying_warps: int = 0
    persistent: bool = False
    cluster: int = 1
    groups: int = 1
    band: int = 1
    divides_inputs: bool = False


@dataclasses.dataclass(frozen=True)
class WarpPlan(_Recorded):
    """A warp multiplies ``rows`` rows with ``columns`` columns of the matrix, of which each lane reads ``inputs``
    numbers at a time; a block has ``warps`` of them. ``ahead``: how many such steps are read before the first is used;
    ``multiply_adds``: of a number of the matrix with a row, those that decode it among them. ``side_by_side``: all rows
    get some columns of the matrix before any gets the next."""

    product: Product
    warps: int
    columns: int
    inputs: int
    rows: int = 1
    ahead: int = 1
    multiply_adds: float = 1
    side_by_side: bool = False


@dataclasses.dataclass(frozen=True)
class StreamPlan(_Recorded):
    """Tensors ``read`` and ``written`` once, by the names of the kernel's parameters. A thread reads ``load_bytes`` at
    once, and so ``loads`` times before it uses the first. ``read_of_pair`` and ``written_of_pair``: bytes of each pair
    of token and expert beside these, for tensors of which not all rows are in use. ``most_read`` and ``most_written``:
    of each tensor, so many numbers at most (C, of the kernel's sizes; nothing where there is no such limit)."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    load_bytes: int = 4
    loads: int = 1
    read_of_pair: int = 0
    written_of_pair: int = 0
    most_read: tuple[str, ...] = ()
    most_written: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class WalkPlan(_Recorded):
    """A warp takes ``steps`` (C, of the kernel's sizes) one after another, and in each waits so many times for memory,
    and so many times for shared memory or other lanes. ``moved``: the tensors that are read or written, by the names of
    the kernel's parameters; none where that is all of them."""

    steps: str
    memory_waits: float = 1.0
    exchanges: float = 0.0
    moved: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class AttentionPlan(_Recorded):
    """A block of threads has ``rows`` queries of the ``heads`` that share keys, ``columns`` columns of the values, of
    which there are ``slices``, and walks over tiles of ``keys`` keys up to the last one that its queries see.

    ``row_bytes`` and ``key_bytes``: of a number of queries and results, and of keys and values. ``waits``: loads of a
    tile that are waited for one after another, ``ahead``: while the tile before is computed. ``weighs_meanwhile``:
    weights are computed while tensor cores multiply. ``copying_warps`` of a block only bring keys and values.
    ``causal``: which keys a query sees, as
    :class:`~moec.targets.tvm.lower.attention.AttentionProblem` says. C, of the kernel's sizes, are ``sequences``, each
    with keys of its own (heads of keys counted), ``queries`` and ``held`` keys of one, and into how many ``parts`` its
    keys are divided.
    """

    dtype: str
    row_bytes: int
    key_bytes: int
    head_size: int
    columns: int
    slices: int
    heads: int
    causal: str
    rows: int
    keys: int
    unit: Unit
    sequences: str
    queries: str
    held: str
    parts: str = "1"
    waits: int = 1
    ahead: bool = True
    weighs_meanwhile: bool = False
    copying_warps: int = 0

    @property
    def best_unit(self) -> Unit:
        """What could multiply these numbers."""
        return "fma" if self.dtype == "float32" else "mma"


LaunchPlan = TilePlan | WarpPlan | AttentionPlan | StreamPlan | WalkPlan
_PLANS: dict[str, type[LaunchPlan]] = {
    "tiles": TilePlan,
    "warps": WarpPlan,
    "attention": AttentionPlan,
    "stream": StreamPlan,
    "walk": WalkPlan,
}


def parse_plan(data: Any, where: str) -> LaunchPlan | None:
    """A plan out of an artifact; None where there is none. Raises ArtifactError for one that moec did not write."""
    if data is None:
        return None
    try:
        fields = dict(data)
        made = _PLANS[fields.pop("kind")]
        if "product" in fields:
            fields["product"] = _checked(Product, dict(fields["product"]))
        return _checked(made, fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: its plan cannot be read: {error}; compile the model again") from error


def _checked(made: type[Any], fields: Mapping[str, Any]) -> Any:
    """Raises TypeError for fields that are missing, unknown or of another type, ValueError for numbers out of range."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    plan = made(**values)
    for field in dataclasses.fields(made):
        value = getattr(plan, field.name)
        kinds: tuple[type, ...] = _KINDS.get(field.type, (Product, str))  # type: ignore[arg-type]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{field.name} is {str(value)[:40]!r}")
        if isinstance(value, (int, float)) and not (
            0 < value <= LARGEST or (value == 0 and field.name in _MAY_BE_ZERO)
        ):
            raise ValueError(f"{field.name} is {value}")
    return plan


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "tuple[str, ...]": (tuple,),
}
_MAY_BE_ZERO = {
    "divides_inputs",
    "copying_warps",
    "persistent",
    "gathered",
    "side_by_side",
    "ahead",
    "weighs_meanwhile",
    "memory_waits",
    "exchanges",
    "read_of_pair",
    "written_of_pair",
}
