"""The memory traffic of a kernel that has no plan of its own, counted in its TIR: a plan to predict its time from.

The count of a load or store is the product of the extents of the loops and threads around it; conditions are ignored.
The traffic of a tensor is at most its size. So a gather reads as many rows of a table as it looks up, a slice reads its
part, and a row that is read in several passes counts once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.common.guards import parse_size
from moec.targets.cuda.launch_model.plans import LARGEST, MemoryBoundPlan
from moec.targets.tvm.c_expressions import in_c

_EXTENT = "thread_extent"
_INDEPENDENT = (tirx.ForKind.UNROLLED, tirx.ForKind.VECTORIZED)


@dataclasses.dataclass(frozen=True)
class _Around:
    """The loops around a statement. It runs as often as the product of ``times`` says (None if that does not follow
    from sizes). ``in_a_row``: how often it runs within the innermost loop that is not unrolled."""

    times: tuple[Any, ...] | None = ()
    in_a_row: int = 1


@dataclasses.dataclass(frozen=True)
class _Access:
    """A load or store of ``lanes`` neighbouring numbers of ``buffer``."""

    buffer: Any
    lanes: int
    stores: bool
    around: _Around

    @property
    def count(self) -> Any:
        """The numbers that it moves in all, as an expression; None if that does not follow from sizes."""
        if self.around.times is None:
            return None
        product: Any = tirx.IntImm("int64", self.lanes)
        for extent in self.around.times:
            product = product * tirx.Cast("int64", extent)
        return product

    @property
    def bytes(self) -> int:
        return self.lanes * tvm.DataType(str(self.buffer.dtype)).itemsize


def stream_plan(functions: Iterable[tuple[tirx.PrimFunc, Mapping[Any, str]]]) -> MemoryBoundPlan:
    """The plan of a kernel. ``functions``: its functions on the device, each with the tensors that its parameters point
    to, by the names that the kernel gives them."""
    read, written = dict[str, list[_Access]](), dict[str, list[_Access]]()
    for function, names in functions:
        tensors = _tensors(function, names)
        for access in _accesses(function.body, _Around(), set(function.params)):
            if access.buffer in tensors:
                accesses = written if access.stores else read
                accesses.setdefault(tensors[access.buffer], []).append(access)
    loads = [access for several in read.values() for access in several]
    return MemoryBoundPlan(
        tuple(read),
        tuple(written),
        max((access.bytes for access in loads), default=1),
        max(sum(access.around.in_a_row for access in loads), 1),
        most_read=tuple(map(_most, read.values())),
        most_written=tuple(map(_most, written.values())),
    )


def _tensors(function: tirx.PrimFunc, names: Mapping[Any, str]) -> dict[Any, str]:
    """The kernel's names of the function's tensors, by buffer; views of a tensor have its name."""
    tensors = dict[Any, str]()

    def declare(declaration: Any) -> None:
        data = declaration.data
        source = data.args[0] if isinstance(data, tvm.ir.Call) else data  # the address of a buffer, or a parameter
        if source in tensors or source in names:
            tensors[declaration.buffer] = tensors[source] if source in tensors else names[source]

    tvm_ffi.structural_walk(function.body, [(tirx.DeclBuffer, declare)])
    return tensors


def _most(accesses: Sequence[_Access]) -> str:
    """The upper bound of the numbers that these accesses to one tensor move, in C; empty if it does not follow from
    sizes or cannot be written in C."""
    counts = [access.count for access in accesses]
    if any(count is None for count in counts):
        return ""
    text = in_c(tirx.Min(sum(counts[1:], counts[0]), tirx.IntImm("int64", LARGEST)))
    try:
        parse_size(text.replace("/", "//"))
    except ValueError:
        return ""
    return text


def _accesses(statement: Any, around: _Around, sizes: set[Any]) -> Iterator[_Access]:
    """The accesses of a statement. ``sizes``: the variables that extents may use; other extents make a count
    unknown."""
    if isinstance(statement, tirx.SeqStmt):
        for part in statement.seq:
            yield from _accesses(part, around, sizes)
    elif isinstance(statement, tirx.For):
        unrolled = statement.kind in _INDEPENDENT and isinstance(statement.extent, tirx.IntImm)
        yield from _accesses(statement.body, _within(around, statement.extent, sizes, unrolled=unrolled), sizes)
    elif isinstance(statement, tirx.AttrStmt):
        is_thread = statement.attr_key == _EXTENT
        inside = _within(around, statement.value, sizes, unrolled=False) if is_thread else around
        yield from _accesses(statement.body, inside, sizes)
    elif isinstance(statement, tirx.While):
        yield from _accesses(statement.body, _Around(None, 1), sizes)
    elif isinstance(statement, tirx.IfThenElse):
        yield from _of_leaf(statement.condition, around)
        for branch in (statement.then_case, statement.else_case):
            if branch is not None:
                yield from _accesses(branch, around, sizes)
    else:
        yield from _of_leaf(statement, around)


def _within(around: _Around, extent: Any, sizes: set[Any], *, unrolled: bool) -> _Around:
    """The surroundings inside a loop of that extent, or inside a binding to that many threads."""
    unknown: list[Any] = []
    tvm_ffi.structural_walk(
        extent, [(tvm.ir.Var, lambda variable: None if variable in sizes else unknown.append(variable))]
    )
    times = None if around.times is None or unknown else (*around.times, extent)
    return _Around(times, around.in_a_row * int(extent) if unrolled else around.in_a_row)


def _of_leaf(statement: Any, around: _Around) -> Iterator[_Access]:
    accesses: list[_Access] = []

    def add(buffer: Any, number: Any, *, stores: bool) -> None:
        accesses.append(_Access(buffer, tvm.DataType(str(number.ty.dtype)).lanes, stores, around))

    tvm_ffi.structural_walk(
        statement,
        [
            (tvm.ir.TensorLoad, lambda load: add(load.source, load, stores=False)),
            (tirx.BufferStore, lambda store: add(store.buffer, store.value, stores=True)),
        ],
    )
    yield from accesses
