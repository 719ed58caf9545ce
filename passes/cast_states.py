"""Caches of keys and values in 16-bit floats, or in int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import onnx_ir as ir

from moec.ir.dialect import make_node
from moec.ir.states import ATTENTION_CACHES, states_of
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, is_op, remove_unused

_FLOAT = ir.DataType.FLOAT
_TYPES = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}


@dataclasses.dataclass(frozen=True)
class CastStates:
    """Rounds new elements of states, so that programs store the states in half the bytes, or a quarter.

    Needs the marks of hold-cache.

    1. Elements that an output appends to an input (by Concat, or as keys and values of Attention) are rounded to
       ``dtype`` and converted back to float32: to within 1/2048 (fp16) or 1/256 (bf16) of their magnitude, beyond
       65,504 (fp16) to infinity. The input is rounded likewise, which does not change elements that already were.
    2. ``int8``: each row of the last axis, such as the key of a token in a head, becomes whole numbers times a scale of
       its own (``moec.RoundRows``): to within 1/253 of the row's largest number.
    3. States that each run replaces, and states that are not float32, stay as they are, with a note. With ``int8`` so
       do states that grow along another axis than the last but one, those whose last axis has no fixed size, and keys
       and values that Attention gets with joined heads.
    4. An earlier rounding to ``dtype`` is replaced; with ``int8`` so is one to 16 bits.
    5. A model without states gets a warning, or with ``optional`` a note.

    ::

        (float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present) {
           present = Concat <axis = 1> (past, new)
        }
            infer-shapes,hold-cache,cast-states{dtype=fp16} ->
        (float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present) {
           past_float16 = Cast <to = 10> (past)
           past_rounded = Cast <to = 1> (past_float16)
           new_float16 = Cast <to = 10> (new)
           new_rounded = Cast <to = 1> (new_float16)
           present = Concat <axis = 1> (past_rounded, new_rounded)
        }
    """

    name: ClassVar[str] = "cast-states"
    exactness: ClassVar[Exactness] = "lossy"

    dtype: Literal["bf16", "fp16", "int8"]
    optional: bool = False

    def apply(self, model: ir.Model, report: Report) -> bool:
        states = states_of(model)
        outputs = {str(output.name): output for output in model.graph.outputs}
        if not states:
            tell = report.note if self.optional else report.warn
            tell(self.name, "model", "nothing to cast: hold-cache found no state before this pass")
        return any([self._cast(model.graph, outputs[state.output], state.axis, report) for state in states])

    def _cast(self, graph: ir.Graph, output: ir.Value, axis: int | None, report: Report) -> bool:
        node, positions = output.producer(), None
        if axis is not None and is_op(node, "Concat") and len(node.inputs) == 2:
            positions = (0, 1)
        elif axis is not None and is_op(node, "Attention"):
            positions = ATTENTION_CACHES.get(output.index() or 0)
        caches = [node.inputs[position] for position in positions] if node is not None and positions else []
        if node is None or positions is None or any(cache is None or cache.dtype != _FLOAT for cache in caches):
            report.note(self.name, str(output.name), "not cast: expected float32 appended to a cache")
            return False
        if self.dtype == "int8" and not _have_rows(caches, output, axis):
            report.note(self.name, str(output.name), "not cast: expected rows of a fixed size, each written at once")
            return False
        for position, value in zip(positions, caches, strict=True):
            assert value is not None
            node.replace_input_with(position, self._rounded(graph, node, self._unrounded(value)))
            remove_unused(graph, value)
        return True

    def _unrounded(self, value: ir.Value) -> ir.Value:
        """The float32 value before a rounding to 16 bits and back that another rounding makes superfluous; else the
        value itself."""
        widened = value.producer()
        narrow = widened.inputs[0] if is_op(widened, "Cast") else None
        narrowed = None if narrow is None else narrow.producer()
        if narrow is None or not is_op(narrowed, "Cast") or narrow.dtype not in self._replaced():
            return value
        before = narrowed.inputs[0]
        return before if before is not None and before.dtype == _FLOAT else value

    def _replaced(self) -> list[ir.DataType]:
        return list(_TYPES.values()) if self.dtype == "int8" else [_TYPES[self.dtype]]

    def _rounded(self, graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
        """Convert a value to the type and back, in front of the node ``before``."""
        if self.dtype == "int8":
            return _inserted(graph, before, make_node("RoundRows", {"x": value}), value, "rounded")
        narrow = _TYPES[self.dtype]
        cast = ir.node("Cast", [value], attributes={"to": narrow})
        short = _inserted(graph, before, cast, value, narrow.name.lower(), narrow)
        return _inserted(graph, before, ir.node("Cast", [short], attributes={"to": _FLOAT}), value, "rounded")


def _inserted(
    graph: ir.Graph, before: ir.Node, node: ir.Node, like: ir.Value, label: str, dtype: ir.DataType = _FLOAT
) -> ir.Value:
    """Insert a node in front of ``before``; name its result after ``like`` and give it the shape of ``like``."""
    (result,) = node.outputs
    result.name, result.shape, result.dtype = fresh_name(graph, f"{like.name}_{label}"), like.shape, dtype
    graph.insert_before(before, node)
    return result


def _have_rows(caches: Sequence[ir.Value | None], output: ir.Value, axis: int | None) -> bool:
    """Whether an update appends rows to a matrix: old, new and resulting values have rows of the same fixed size."""
    shapes = [value.shape for value in (*caches, output) if value is not None and value.shape is not None]
    if len(shapes) <= len(caches) or axis != len(shapes[0]) - 2:
        return False
    return len({len(shape) for shape in shapes}) == 1 and all(
        isinstance(shape[-1], int) and shape[-1] == shapes[0][-1] for shape in shapes
    )
