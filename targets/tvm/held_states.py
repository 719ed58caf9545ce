"""States that a program keeps in place from call to call, such as caches of keys and values that grow.

``present = Concat(past, new)``, an input with something behind it as an output, copies all that was there at every
call. A program that *holds* the state takes, in place of the input, memory with room for more, writes ``new`` behind
what is in use, and reads both where they lie. The memory is in pages, so that it grows without a copy: a tensor
[*before, length, *after] that grows along one axis lies in [pages, *before, page, *after], number i of that axis in
page ``i // page``. One page of exactly the length is the tensor itself.

How much is in use is a size of the program like any other; what lies behind it may be anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_ir as ir
import tvm_ffi
from tvm import relax, te, tirx

from moec.common.guards import bound_names, size_names
from moec.common.specs import HeldState
from moec.ir.names import operator_name
from moec.ir.states import ATTENTION_CACHES
from moec.targets.tvm.attributes import attribute, optional_input
from moec.targets.tvm.constants import dtype_of
from moec.targets.tvm.kernel import STORAGE_TYPES

if TYPE_CHECKING:
    from moec.targets.tvm.lowering import Lowering

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class AppendProblem:
    """What is static about writing behind a state: its axes before and after the one along which it grows, each a
    number or None, and how elements are stored; what is written is float32 or stored likewise."""

    before: tuple[int | None, ...]
    after: tuple[int | None, ...]
    new: str
    stored: str


@dataclasses.dataclass(frozen=True)
class HeldTensor:
    """A tensor [*before, ``length``, *after] of ``dtype`` that lies in ``pages``. ``continued``: the value that is the
    tensor with more behind it, of which there is one."""

    pages: relax.Expr
    axis: int
    length: Any
    dtype: str
    continued: ir.Value | None = None

    @property
    def ty(self) -> relax.TensorType:
        """The type of the tensor itself."""
        sizes = list(self.pages.ty.shape)[1:]
        sizes[self.axis] = self.length
        return relax.TensorType(sizes, self.dtype)

    @property
    def stored(self) -> str:
        return str(self.pages.ty.dtype)

    def lies_as(self, other: HeldTensor) -> bool:
        """Whether another one has the same numbers in the same pages."""
        same = self.stored == other.stored and self.axis == other.axis
        return same and tvm_ffi.structural_equal(self.length, other.length)

    def gathered(self) -> Callable[[te.Tensor], te.Tensor]:
        """What makes an ordinary tensor of the pages, for operators that know none."""
        shape, page = list(self.ty.shape), self.pages.ty.shape[self.axis + 1]

        def build(pages: te.Tensor) -> te.Tensor:
            def element(*at: tirx.Expr) -> tirx.Expr:
                number = at[self.axis]
                inside = tirx.floormod(number, page)
                place = pages(tirx.floordiv(number, page), *at[: self.axis], inside, *at[self.axis + 1 :])
                return place.astype(self.dtype)

            return te.compute(shape, element, name="gathered")

        return build


Append = Callable[["Lowering", ir.Node, AppendProblem, HeldTensor, relax.Expr], relax.Expr]
"""A target's part: the pages after the tensor was written behind what is in use."""


class Held(NamedTuple):
    """A state that the program holds, the output that continues it, and the input as it is stored: where both sides are
    rounded to 16 bits, what the rounding makes of it."""

    state: HeldState
    output: ir.Value
    rounded: ir.Value


def held_states(graph: ir.Graph) -> dict[ir.Value, Held]:
    """By input, what the program holds: an output that is the input with something behind it, along an axis whose size
    is a name of its own, and that the graph itself reads."""
    found: dict[ir.Value, Held] = {}
    known = bound_names([_sizes(value) for value in graph.inputs])
    for output in graph.outputs:
        given, new, growth, axis = _continuation(output) or (None, None, 0, 0)
        past, stored = _before_rounding(given, new)
        if given is None or past is None or past in found or not past.is_graph_input() or past.is_graph_output():
            continue
        size, dtype = _sizes(past)[axis], dtype_of(past)
        grows = isinstance(size, str) and size_names(size) == (size,)
        if grows and dtype in STORAGE_TYPES and set(size_names(growth)) <= known - {""}:
            state = HeldState(past.name or "", output.name or "", axis, stored or dtype, str(growth))
            found[past] = Held(state, output, given)
    return found


def _continuation(output: ir.Value) -> tuple[ir.Value, ir.Value, int | str, int] | None:
    """The state that an output continues, what is put behind it and how much that is, and the axis."""
    node = output.producer()
    operator = "" if node is None else operator_name(node)
    if node is not None and operator == "Concat" and len(node.inputs) == 2 and output.uses():
        (past, new), axis = node.inputs, attribute(node, "axis")
    elif node is not None and operator == "Attention" and output.index() in ATTENTION_CACHES:
        past, new = (optional_input(node, position) for position in ATTENTION_CACHES[output.index() or 0])
        axis = -2
    else:
        return None
    if past is None or new is None:
        return None
    sizes, added = _sizes(past), _sizes(new)
    if operator == "Attention" and len(added) == 3:  # [batch, new, heads * size]
        added = [added[0], "", added[1], added[2]]
    if not sizes or len(sizes) != len(added):
        return None
    return past, new, added[axis], axis % len(sizes)


def _before_rounding(past: ir.Value | None, new: ir.Value | None) -> tuple[ir.Value | None, str | None]:
    """The past before it was rounded to 16 bits, and to which type, if both were rounded to it; else itself."""
    narrow = [_narrowed(value) for value in (past, new)]
    types = {None if value is None else dtype_of(value) for value in narrow}
    node = None if narrow[0] is None else narrow[0].producer()
    before = node.inputs[0] if node is not None and operator_name(node) == "Cast" else None
    if node is None or before is None or len(types) > 1 or _readers(before) > 1 or _readers(node.outputs[0]) > 1:
        return past, None
    return before, types.pop()


def _readers(value: ir.Value) -> int:
    """Nodes that read its elements, not only its sizes."""
    return sum(operator_name(node) != "Shape" for node, _ in value.uses())


def _narrowed(value: ir.Value | None) -> ir.Value | None:
    """The value of 16 bits that a value was widened from."""
    node = None if value is None else value.producer()
    narrow = None if node is None or operator_name(node) != "Cast" else node.inputs[0]
    return narrow if narrow is not None and narrow.dtype in _NARROW else None


def _sizes(value: ir.Value) -> list[int | str]:
    return [] if value.shape is None else [size if isinstance(size, int) else size.value or "" for size in value.shape]
