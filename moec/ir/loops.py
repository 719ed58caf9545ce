"""Loop and Scan for the reference interpreter, step by step as the ONNX specification has them.

``onnx.reference`` concatenates the scan outputs of a Loop instead of stacking them, supports neither axes nor
directions of a Scan, and fails if a Scan takes no step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_loop, op_scan

from moec.common.loop_steps import MAXIMUM_STEPS, LoopLimit

Array = np.ndarray[Any, Any]
Step = Callable[[Sequence[Array]], list[Array]]
"""The outputs of a body by its inputs."""


class Loop(op_loop.Loop):
    """``(trips, going, *carried)``: the body takes the number of the step, the condition and the carried values; it
    returns the condition, the carried values, and slices."""

    body: Any

    def _run(self, M: Any, cond: Any, *carried: Any, context: Any = None, attributes: Any = None, **_: Any) -> Any:
        step = _step(self, context, attributes)
        trips = None if M is None else int(np.asarray(M).item())
        going, number = np.array(True) if cond is None else np.asarray(cond), 0
        stacks: list[list[Array]] = [[] for _ in self.body.output_names[1 + len(carried) :]]
        shapes = [(1,) if len(kind.tensor_type.shape.dim) == 1 else () for kind in self.body.input_types_[:2]]

        def arguments_of(number: int, going: Any, carried: Sequence[Any]) -> list[Any]:
            """The arguments of the body, of which the first two may have one axis there."""
            return [np.full(shapes[0], number, np.int64), np.reshape(going, shapes[1]), *carried]

        first = arguments_of(0, going, carried)
        limit, is_counted = LoopLimit(_bytes(carried)), trips is not None and trips <= MAXIMUM_STEPS
        while going.item() and (trips is None or number < trips):
            limit.step(_bytes(carried), 0 if is_counted else sum(map(_bytes, stacks)))
            going, *results = step(arguments_of(number, going, carried))
            carried = tuple(results[: len(carried)])
            for slices, result in zip(stacks, results[len(carried) :], strict=True):
                slices.append(result)
            number += 1
        scanned = [
            np.stack(slices) if slices else np.expand_dims(_like_slice(self, step, first, 1 + len(carried) + at), 0)[:0]
            for at, slices in enumerate(stacks)
        ]
        return (*carried, *scanned)


class Scan(op_scan.Scan):
    """``(*carried, *scanned)``: the body takes the carried values and a slice of each scanned value; it returns the
    carried values and slices."""

    body: Any
    num_scan_inputs: Any

    def __init__(self, node: Any, parameters: Any) -> None:
        OpRun.__init__(self, node, parameters)

    def _run(self, *inputs: Any, context: Any = None, attributes: Any = None, **_: Any) -> Any:
        step = _step(self, context, attributes)
        count = int(self.num_scan_inputs)
        if not 0 < count <= len(inputs):
            raise ValueError(f"num_scan_inputs is {count}, of {len(inputs)} inputs")
        carried, scanned = list(inputs[:-count]), inputs[-count:]
        outputs = len(self.body.output_names) - len(carried)
        sources = _directed(self, "scan_input", count)
        targets = _directed(self, "scan_output", outputs)
        rows = [
            np.moveaxis(value, axis, 0)[:: -1 if is_backward else 1]
            for value, (axis, is_backward) in zip(scanned, sources, strict=True)
        ]
        lengths = {len(array) for array in rows}
        if len(lengths) > 1:
            raise ValueError(f"it scans axes of sizes {sorted(lengths)}; expected equal sizes")
        first = [*carried, *(np.zeros(array.shape[1:], array.dtype) for array in rows)]
        stacks: list[list[Array]] = [[] for _ in range(outputs)]
        limit = LoopLimit(_bytes(carried))
        for number in range(lengths.pop()):
            limit.step(_bytes(carried))
            results = step([*carried, *(array[number, ...] for array in rows)])
            carried = results[: len(carried)]
            for kept, result in zip(stacks, results[len(carried) :], strict=True):
                kept.append(result)
        stacked = []
        for at, (kept, (axis, is_backward)) in enumerate(zip(stacks, targets, strict=True)):
            nothing = None if kept else _like_slice(self, step, first, len(carried) + at)
            stacked.append(_stacked(kept[::-1] if is_backward else kept, axis, nothing))
        return (*carried, *stacked)


def _step(operator: Any, outer: dict[str, Any], attributes: Any) -> Step:
    """A step of an operator's body. ``outer``: all values outside, of which it gets those that it reads."""
    body = operator.body
    around = {name: outer[name] for name in _names_read(body.proto_) if name in outer}

    def step(arguments: Sequence[Array]) -> list[Array]:
        feeds = dict(zip(body.input_names, arguments, strict=True))
        return operator._run_body({**around, **feeds}, attributes=attributes)

    return step


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """Names of all values that a graph, and graphs in it, read."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(name for name in node.input if name)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                names |= _names_read(body)
    return names


def _bytes(carried: Sequence[Any]) -> int:
    return sum(_bytes(value) if isinstance(value, list) else value.nbytes for value in carried)


def _directed(operator: Any, kind: str, count: int) -> list[tuple[int, bool]]:
    """Along which axis, and whether from its end, each input is read or each output written."""
    axes = getattr(operator, f"{kind}_axes") or [0] * count
    directions = getattr(operator, f"{kind}_directions") or [0] * count
    return [(int(axis), bool(direction)) for axis, direction in zip(axes, directions, strict=True)]


def _stacked(slices: Sequence[Array], axis: int, nothing: Array | None) -> Array:
    if nothing is None:
        return np.stack(slices, axis)
    return np.take(np.expand_dims(nothing, axis), [], axis)


def _like_slice(operator: Any, step: Step, first: Sequence[Array], at: int) -> Array:
    """An array of the shape that a slice would have. The body runs on the inputs of its first step. If it cannot, the
    shape comes from its output's type, with 0 for sizes that are not numbers."""
    try:
        return step(first)[at]
    except Exception:  # whatever an operator raises where there is nothing to compute on
        declared = operator.body.output_types_[at].tensor_type
        sizes = [size.dim_value for size in declared.shape.dim]
        return np.zeros(sizes, tensor_dtype_to_np_dtype(declared.elem_type))
