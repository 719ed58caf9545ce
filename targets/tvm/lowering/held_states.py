"""States that a program keeps in place from call to call, such as caches of keys and values that grow.

``present = Concat(past, new)``, an output that continues an input, copies the whole state at every call. A program
that *holds* the state takes memory with room for more in place of the input, writes ``new`` after the part in use, and
reads both where they lie. The memory is in pages, so that it grows without a copy: a tensor [*before, length, *after]
that grows along one axis lies in [pages, *before, page, *after], with index i of that axis in page ``i // page``. One
page of exactly the length is the tensor itself.

The length in use is a size of the program like any other; the memory after it may contain anything.

A state of which all readers see only the last entries, those of a window, may begin later: the program takes one more
number, the entries that lie in pages, which are the last ones of the length. Entries before them have no place.

``present = TensorScatter(past, new, starts)``, a cache with room, is held likewise: all of the room is in use, and
``new`` overwrites a part of it, which begins for each sequence at its entry of ``starts``. The graph may append zeros
to the cache before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import onnx_ir as ir
from tvm import relax

from moec.common.guards import bound_names, size_names
from moec.common.names import operator_name
from moec.common.specs import HeldState
from moec.ir.dialect import is_moec
from moec.ir.states import ATTENTION_CACHES
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS
from moec.targets.tvm.kernels.kernel import STORAGE_TYPES
from moec.targets.tvm.lowering.attributes import attribute, optional_input
from moec.targets.tvm.lowering.constants import constant_of, dtype_of
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.paged_tensors import AppendProblem, PagedTensor, Places, append_problem

NO_GROWTH = 0
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Holding:
    """A target's way to hold states.

    ``append`` writes a tensor after the part in use, or at places if the target ``has_places``, and returns the new
    pages. ``conversions`` gives the symbols of two kernels, (start, state, pages) and (pages, state), for runs that are
    given a state and return it; None where the runtime converts it. ``types``: element types that states can be stored
    in. ``lengths_in_memory``: kernels read the lengths of states in use from the device's memory, so that one captured
    run serves all lengths. ``batches``: kernels take batches of sequences (:mod:`moec.ir.batches`). ``windows`` finds
    the states of which all readers see the last entries alone, and how many."""

    append: Callable[[LoweringContext, ir.Node, AppendProblem, PagedTensor, relax.Expr, Places | None], relax.Expr]
    windows: Callable[[LoweringContext, ir.Graph, Mapping[ir.Value, Held]], Mapping[ir.Value, int]]
    conversions: Callable[[LoweringContext, ir.Node, AppendProblem], tuple[str, str]] | None = None
    types: Collection[str] = STORAGE_TYPES
    has_places: bool = False
    lengths_in_memory: bool = False
    batches: bool = False

    def converting(self, lowering: LoweringContext, state: HeldState, past: PagedTensor) -> HeldState:
        """``state`` with the kernels that convert it, if it is stored in another type than ``past`` has."""
        node = None if past.continued is None else past.continued.producer()
        if past.stored == past.dtype or self.conversions is None or node is None:
            return state
        store, restore = self.conversions(lowering, node, append_problem(past, past.dtype))
        return dataclasses.replace(state, store=store, restore=restore)


class StateRounding(NamedTuple):
    """The ``nodes`` that round ``source`` to numbers of the type ``stored``.

    Their result has another type than ``source`` where the graph itself computes in fewer bits."""

    source: ir.Value
    stored: str
    nodes: tuple[ir.Node, ...]

    @property
    def value(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def is_apart(self) -> bool:
        """Whether only ``nodes`` read the values between the source and the result."""
        return all(_has_one_reader(node.outputs[0]) for node in self.nodes[:-1])

    @property
    def may_be_left_out(self) -> bool:
        """Whether the source can replace the result, because the only reader rounds when it writes into pages."""
        return self.is_apart and _has_one_reader(self.value) and self.source.dtype == self.value.dtype


class Held(NamedTuple):
    """A state that the program holds: the ``past`` entries, rounded or not, and the output that continues them.

    ``roundings``: those of the state and of the appended tensor, which writing into the pages does as well."""

    state: HeldState
    past: ir.Value
    output: ir.Value
    roundings: tuple[StateRounding, StateRounding] | None


def held_states(graph: ir.Graph, holding: Holding) -> dict[ir.Value, Held]:
    """The states that the program holds, by graph input.

    A state has an output that the graph itself reads and that either appends to the input along an axis whose size is
    a name of its own, or overwrites entries of the input, if the target can write at places."""
    states: dict[ir.Value, Held] = {}
    names = bound_names([_sizes(value) for value in graph.inputs])
    for output in graph.outputs:
        continued = _continuation(output) or (_with_room(output) if holding.has_places else None)
        if continued is None:
            continue
        past, new, growth, axis = continued
        entries, roundings = past, _roundings(past, new)
        if roundings is not None and roundings[0].stored in holding.types and _fit(roundings[0], past, new, axis):
            past = roundings[0].source
        else:
            roundings = None
        if past in states or not past.is_graph_input() or past.is_graph_output() or 0 in _sizes(past):
            continue  # a state without elements need not be held
        size, dtype = _sizes(past)[axis], dtype_of(past)
        can_grow = isinstance(size, str) and size_names(size) == (size,) and set(size_names(growth)) <= names - {""}
        if dtype in STORAGE_TYPES and (can_grow or growth == NO_GROWTH):
            stored, at_places = roundings[0].stored if roundings else dtype, _is_made_by(output, "TensorScatter")
            state = HeldState(past.name or "", output.name or "", axis, stored, str(growth), at_places=at_places)
            states[past] = Held(state, entries, output, roundings)
    return states


def renamed(state: HeldState, names: Mapping[str, str]) -> HeldState:
    """The state with its kernels renamed by ``names``, which maps earlier names to final ones."""
    return dataclasses.replace(
        state, store=names.get(state.store, state.store), restore=names.get(state.restore, state.restore)
    )


def rounded_by_writing(states: Iterable[Held]) -> dict[ir.Node, ir.Value | None]:
    """Nodes that need not be computed, because writing into pages rounds as well.

    The last node that rounds an appended tensor is mapped to the value that replaces its result; others to None."""
    written: dict[ir.Node, ir.Value | None] = {}
    for before, added in (state.roundings for state in states if state.roundings is not None):
        written |= dict.fromkeys(before.nodes)
        if added.may_be_left_out:
            written |= dict.fromkeys(added.nodes[:-1])
            written[added.nodes[-1]] = added.source
    return written


def _continuation(output: ir.Value) -> tuple[ir.Value, ir.Value, int | str, int] | None:
    """(state, appended tensor, its size along the axis, axis) of an output that appends to a state; None for others."""
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


def _with_room(output: ir.Value) -> tuple[ir.Value, ir.Value, int | str, int] | None:
    """(state, new entries, growth, axis) of an output that overwrites entries of a state; None for others.

    The graph may append room to the state before. Then each reader of the output has to read its sizes alone or know
    how many entries are in use: any other would take the room for entries."""
    node = output.producer()
    if node is None or not _is_made_by(output, "TensorScatter") or attribute(node, "mode", "linear") != "linear":
        return None
    cache, new, starts = (optional_input(node, position) for position in range(3))
    if cache is None or new is None or starts is None or not output.uses():
        return None
    after, axis = _sizes(cache), attribute(node, "axis", -2)
    if not after or axis % len(after) == 0:
        return None
    axis %= len(after)
    past = without_appended_zeros(cache, axis)
    if not _has_one_reader(past) or not _has_one_reader(cache):
        return None  # another reader would see the new entries
    before = _sizes(past)
    if after == before:
        return past, new, NO_GROWTH, axis
    is_told = all(operator_name(user) == "Shape" or _is_told(user, position) for user, position in output.uses())
    appended = after[:axis] + after[axis + 1 :] == before[:axis] + before[axis + 1 :]
    return (past, new, f"{after[axis]} - {before[axis]}", axis) if is_told and appended else None


def without_appended_zeros(value: ir.Value, axis: int) -> ir.Value:
    """The tensor to which a Pad appends zeros along ``axis`` alone to make the value; the value itself if none does."""
    pad = value.producer()
    if pad is None or not _is_made_by(value, "Pad"):
        return value
    source, pads, fill, axes = (optional_input(pad, position) for position in range(4))
    numbers = [None if value is None else constant_of(value) for value in (fill, axes)]
    filled, named = (None if tensor is None else tensor.numpy().ravel().tolist() for tensor in numbers)
    is_zero = fill is None or filled == [0]
    is_constant = attribute(pad, "mode", "constant") == "constant"
    appends = is_constant and is_zero and named == [axis] and _begins_with_zero(pads)
    return source if appends and source is not None else value


def _begins_with_zero(numbers: ir.Value | None) -> bool:
    if numbers is None:
        return False
    constant, node = constant_of(numbers), numbers.producer()
    if constant is not None:
        return bool(constant.size) and constant.numpy().ravel()[0] == 0
    return node is not None and operator_name(node) == "Concat" and _begins_with_zero(node.inputs[0])


def _is_told(attention: ir.Node, position: int) -> bool:
    """Whether input ``position`` is keys or values of an Attention that has the number in use as an input."""
    is_attention = operator_name(attention) == "Attention" and position in (1, 2)
    return is_attention and optional_input(attention, 6) is not None


def _is_made_by(value: ir.Value, operator: str) -> bool:
    """Whether a value is made by an operator."""
    node = value.producer()
    return node is not None and operator_name(node) == operator


def _roundings(past: ir.Value, new: ir.Value) -> tuple[StateRounding, StateRounding] | None:
    """Roundings of both values; None unless both are to the same type, the past has the type it was rounded from, and
    nothing else reads the past."""
    before, added = _rounding(past), _rounding(new)
    if before is None or added is None or before.stored != added.stored or before.source.dtype != past.dtype:
        return None
    return (before, added) if before.is_apart and _readers(before.source) == 1 else None


def _fit(rounding: StateRounding, past: ir.Value, new: ir.Value, axis: int) -> bool:
    """Whether pages can hold the rounded values: int8 has a scale per row, so both need rows of one known size."""
    before, added = _sizes(past), _sizes(new)
    is_matrix = axis == len(before) - 2 and len(added) == len(before) and isinstance(before[-1], int)
    return rounding.stored != INT8_ROWS or (is_matrix and added[-1] == before[-1])


def _rounding(value: ir.Value) -> StateRounding | None:
    node = value.producer()
    source = None if node is None else node.inputs[0]
    if node is None or source is None:
        return None
    if is_moec(node, "RoundRows"):
        return StateRounding(source, INT8_ROWS, (node,))
    if operator_name(node) != "Cast" or source.dtype not in _NARROW:
        return None
    stored, narrowing = dtype_of(source), source.producer()
    before = narrowing.inputs[0] if narrowing is not None and operator_name(narrowing) == "Cast" else None
    if narrowing is None or before is None or before.dtype != value.dtype:
        return StateRounding(source, stored, (node,))
    return StateRounding(before, stored, (narrowing, node))


def _has_one_reader(value: ir.Value) -> bool:
    return _readers(value) == 1 and not value.is_graph_output()


def _readers(value: ir.Value) -> int:
    """Number of nodes that read the elements of the value, not only its sizes."""
    return sum(operator_name(node) != "Shape" for node, _ in value.uses())


def _sizes(value: ir.Value) -> list[int | str]:
    return [] if value.shape is None else [size if isinstance(size, int) else size.value or "" for size in value.shape]
