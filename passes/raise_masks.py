"""Masks of attention become its causal order, and what is left of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
import sympy

from moec.common.names import node_name
from moec.ir.masks.conditions import IndexCondition
from moec.ir.masks.elements import TensorElements
from moec.ir.masks.rules import elements
from moec.ir.masks.visibility import Mask, causal_offset, mask_of, own_offset, window_of
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import is_op, value_names
from moec.passes.graph.writer import Writer

_MASK, _PAST, _LENGTHS = 3, 4, 6
_UNKNOWN = "it is not known to show or hide each key by comparisons of positions and truth values"
_MEAN = (
    "it hides keys by {:.6g}, so that a query of which it hides all keys takes the mean of all values, also of those "
    "after it; expected -inf, or no conditions except the causal order and windows"
)


@dataclasses.dataclass(frozen=True)
class RaiseMasks:
    """Reads masks of Attention as conditions on positions, and replaces what ``is_causal`` says.

    The elements of a mask are derived from the operators that make it (:mod:`moec.ir.masks`), whatever their spelling.
    A mask shows a key to a query where all of some conditions hold, and hides it by False, -inf or a number of at most
    -65504; scores are taken to be far smaller than that. Needs the sizes that fold-shapes names.

    1. A condition ``key <= query + c`` is the causal order if c is the number by which ``is_causal`` shifts queries:
       0, the length of the past, or the keys in use minus the queries. The mask loses it, and the node gets the
       attribute. Other shifts are no causal order and stay in the mask.
    2. If c is the number of keys minus that of queries, and the node has neither past nor lengths, it gets the number
       of keys as lengths, so that the last query belongs to the last key.
    3. Conditions that always hold are left out. Further ones, such as a window ``key > query + c - W`` or padding, stay
       as a mask of truth values.
    4. A query that sees no key gives zeros if -inf or False hides them, with and without this pass. A number such as
       the lowest of float32 gives the mean of all values instead, of keys after the query, too. Masks with such a
       number are replaced only if each query surely sees its own key: if they have no conditions except the causal
       order and windows. Others stay, with a remark.
    5. A mask of which anything is unknown stays, with a remark.

    ::

        (float[B,2,S,4] q, float[B,2,P,4] past, float[B,2,S,4] k) => (float[B,2,S,4] y)
           <int64 zero = {0}, int64 one = {1}, int64[1] last = {1}, float shown = {0.0}, float hidden = {-1e30}> {
           keys = Concat <axis = 2> (past, k)
           before = Shape <start = 2, end = 3> (past)
           new = Shape <start = 2, end = 3> (q)
           total = Add (before, new)
           p = Squeeze (before)
           s = Squeeze (new)
           t = Squeeze (total)
           columns = Range (zero, t, one)
           count = Range (zero, s, one)
           rows = Add (count, p)
           row = Unsqueeze (rows, last)
           visible = LessOrEqual (columns, row)
           mask = Where (visible, shown, hidden)
           y = Attention (q, keys, keys, mask)
        }
            fold-shapes,raise-masks,remove-dead-nodes ->
        (float[B,2,S,4] q, float[B,2,P,4] past, float[B,2,S,4] k) => (float[B,2,S,4] y) {
           keys = Concat <axis = 2> (past, k)
           "y.keys" = Shape <end = 3, start = 2> (keys)
           "y.batch" = Shape <end = 1, start = 0> (q)
           "y.lengths" = Expand ("y.keys", "y.batch")
           y = Attention <is_causal = 1> (q, keys, keys, , , , "y.lengths")
        }
    """

    name: ClassVar[str] = "raise-masks"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed, of_tensors, names, left = False, elements(), value_names(model.graph), set[ir.Value]()
        for node in list(model.graph):
            operand = node.inputs[_MASK] if is_op(node, "Attention") and len(node.inputs) > _MASK else None
            if operand is None:
                continue
            mask = mask_of(node, of_tensors)
            raised = _UNKNOWN if mask is None else _raised(node, mask, of_tensors)
            if isinstance(raised, _Raised):
                _replace(Writer(node, names), raised)
                changed = True
            elif raised is not None and operand not in left:
                left.add(operand)
                report.note(self.name, node_name(node), f"mask {operand.name!r} stays, for {raised}")
        return changed


@dataclasses.dataclass(frozen=True)
class _Raised:
    """Causal order and conditions that a mask is replaced by. ``has_lengths``: whether the number of keys becomes the
    lengths."""

    is_causal: bool
    has_lengths: bool
    rest: tuple[IndexCondition, ...]


def _raised(node: ir.Node, mask: Mask, of_tensors: TensorElements) -> _Raised | str | None:
    """The replacement of a mask, or the reason why there is none; None for a mask without a causal order."""
    is_causal = node.attributes.get_int("is_causal", 0) != 0
    if not mask.conditions:
        return _Raised(is_causal, False, ())
    axes, own = mask.axes, own_offset(node, of_tensors, mask.axes)
    shifts = [causal_offset(condition, axes) for condition in mask.conditions]
    shift = next((shift for shift in _allowed_shifts(node, mask, own) if shift in shifts), None)
    if shift is None:
        return None
    rest = tuple(condition for condition, own_shift in zip(mask.conditions, shifts, strict=True) if own_shift != shift)
    if mask.hidden > float("-inf") and not _each_sees_its_own(rest, shift, mask, of_tensors):
        return _MEAN.format(mask.hidden)
    if any(condition.origin is None or not axes.are_of(condition.origin) for condition in rest):
        return "no tensor holds the conditions that are left without the causal order"
    return _Raised(True, shift != own, rest)


def _allowed_shifts(node: ir.Node, mask: Mask, own: sympy.Expr | None) -> list[sympy.Expr]:
    """The shifts that a causal order can have: the node's own one, or, if nothing fixes that, such that the last query
    belongs to the last key."""
    is_fixed = node.attributes.get_int("is_causal", 0) or any(node.inputs[_PAST : _LENGTHS + 1])
    end = sympy.expand(mask.axes.keys - mask.axes.queries)
    return [shift for shift in (own, None if is_fixed else end) if shift is not None]


def _each_sees_its_own(
    rest: Sequence[IndexCondition], shift: sympy.Expr, mask: Mask, of_tensors: TensorElements
) -> bool:
    """Whether each query sees the key ``query + shift``: there is one, and no condition but windows is left."""
    end = mask.axes.keys - mask.axes.queries
    is_there = of_tensors.never_negative(shift) and of_tensors.never_negative(end - shift)
    return is_there and all(window_of(condition, mask.axes, shift) is not None for condition in rest)


def _replace(write: Writer, raised: _Raised) -> None:
    node = write.node
    flags = [_flags(write, condition) for condition in raised.rest]
    mask = flags[0] if flags else None
    for flag in flags[1:]:
        mask = write.add("And", mask, flag, label="mask")
    node.replace_input_with(_MASK, mask)
    if raised.is_causal:
        node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    if raised.has_lengths:
        key = node.inputs[1]
        axis = len(key.shape or ()) - 2 if key is not None else 0
        keys = write.add("Shape", key, start=axis, end=axis + 1, label="keys")
        batch = write.add("Shape", node.inputs[0], start=0, end=1, label="batch")
        node.resize_inputs(max(len(node.inputs), _LENGTHS + 1))
        node.replace_input_with(_LENGTHS, write.add("Expand", keys, batch, label="lengths"))


def _flags(write: Writer, condition: IndexCondition) -> ir.Value:
    """The truth values of a condition."""
    assert condition.origin is not None
    value = condition.origin.value
    return write.add("Not", value, label="shown") if condition.origin.negated else value
