"""Caches of keys and values in 16-bit floats."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

from moec.ir.states import states_of
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, is_op

_TYPES = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}
_NEW = {1: 1, 2: 2}
"""Of Attention, by the present output: the input of what is new."""


@dataclasses.dataclass(frozen=True)
class CastStates:
    """Rounds what runs add to states, so that programs which hold them store half the bytes.

    Needs the marks of hold-cache.

    1. What an output puts behind an input (by Concat, or as keys and values of Attention) is rounded to ``dtype`` and
       made float32 again: to within 1/2048 (fp16) or 1/256 (bf16) of itself, beyond 65,504 (fp16) to infinity. States
       that were given from outside are rounded when they are stored.
    2. States that each run replaces, and those that are no float32, stay as they are, with a note.

    ::

        (float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present) {
           present = Concat <axis = 1> (past, new)
        }
            infer-shapes,hold-cache,cast-states{dtype=fp16} ->
        (float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present) {
           new_float16 = Cast <to = 10> (new)
           new_rounded = Cast <to = 1> (new_float16)
           present = Concat <axis = 1> (past, new_rounded)
        }
    """

    name: ClassVar[str] = "cast-states"
    exactness: ClassVar[Exactness] = "lossy"

    dtype: Literal["bf16", "fp16"]

    def apply(self, model: ir.Model, report: Report) -> bool:
        states = states_of(model)
        outputs = {str(output.name): output for output in model.graph.outputs}
        if not states:
            report.warn(self.name, "model", "nothing to cast: hold-cache found no state before this pass")
        return any([self._cast(model.graph, outputs[state.output], state.axis, report) for state in states])

    def _cast(self, graph: ir.Graph, output: ir.Value, axis: int | None, report: Report) -> bool:
        node, position = output.producer(), None
        if axis is not None and is_op(node, "Concat") and len(node.inputs) == 2:
            position = 1
        elif axis is not None and is_op(node, "Attention"):
            position = _NEW.get(output.index() or 0)
        new = None if node is None or position is None else node.inputs[position]
        if node is None or position is None or new is None or new.dtype != ir.DataType.FLOAT:
            report.note(self.name, str(output.name), "not cast: expected float32 that is put behind what was there")
            return False
        narrow = self._converted(graph, node, new, _TYPES[self.dtype], _TYPES[self.dtype].name.lower())
        node.replace_input_with(position, self._converted(graph, node, narrow, ir.DataType.FLOAT, "rounded", new))
        return True

    def _converted(
        self,
        graph: ir.Graph,
        before: ir.Node,
        value: ir.Value,
        dtype: ir.DataType,
        suffix: str,
        named: ir.Value | None = None,
    ) -> ir.Value:
        """The value in another type, computed before a node."""
        cast = ir.node("Cast", [value], attributes={"to": dtype})
        (result,) = cast.outputs
        result.name = fresh_name(graph, f"{(named or value).name}_{suffix}")
        result.shape, result.dtype = value.shape, dtype
        graph.insert_before(before, cast)
        return result
