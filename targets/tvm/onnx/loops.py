"""Loops with a trip count that is known only at run time, and that are not a recurrence with a kernel.

The body of a Loop or Scan becomes a function of its own, compiled like ``main``. It takes the number of the step,
whether the loop goes on, the states, and the operands that are the same in all steps: values from outside, whole
scanned tensors, of which it reads a slice, and weights, which are weights of ``main``. The runtime
(:mod:`moec.runtime.loops`) calls it step by step; sizes that only the last step tells are read from the result of the
loop::

    found = moec.loop(0, 1, 0, 0, trips, going, state, x)
    steps = match_cast(tensor_to_shape(found))
    y = moec.loop_result(0, -1, 0, found)     # the state after the last step
    z = moec.loop_result(1, 0, 0, found)      # [steps, ...], a slice of each step

A state whose size may change in a step has a size of its own in the body.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.common.dtypes import DTYPES
from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.loop_bodies import LoopBody, body_of
from moec.runtime.loops import LOOP, LOOP_RESULT
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.sizes.symbolic import StaticValue

_ENDLESS = np.iinfo(np.int64).max


class BodyLowering(Lowering):
    """Lowering of a loop's body, within the lowering of the function around it."""

    def __init__(self, parent: Lowering, model: ir.Model) -> None:
        super().__init__(model, parent.converters)
        self.bodies = parent.bodies

    def _narrowing(self, count: tirx.Var) -> None:
        """None: a step always computes all of its results."""


@dataclasses.dataclass(frozen=True)
class _CompiledBody:
    """A body's function, by its number.

    ``results``: sizes and element types of its results, in sizes of the function around it; None for a size that only
    the loop tells. ``weights``: variables of that function that it takes after its inputs."""

    number: int
    results: Sequence[tuple[list[Any], str]]
    weights: Sequence[relax.Var]


def lower_loop(lowering: Lowering, node: ir.Node) -> list[relax.Expr]:
    """The states after the last step, and the slices of all steps, joined along their axis.

    Raises UnsupportedError where the body cannot be compiled, or a state changes its type or rank.
    """
    body = body_of(node)
    trips, steps = _trips(lowering, body)
    if all(result.kept is not None for result in body.results):
        return [lowering.tensor(result.kept) for result in body.results if result.kept is not None]
    compiled = _compiled(lowering, node, body)
    going, is_going = _going(lowering, body)
    asked = [
        (place, axis)
        for place, (sizes, _) in enumerate(compiled.results)
        for axis, size in enumerate(sizes)
        if size is None
    ]
    values = [lowering.tensor(value) for value in body.outside.values()]
    counts = [compiled.number, len(body.states), int(body.asks), len(asked), *itertools.chain(*asked)]
    kind = relax.TensorType([2 + len(asked)], "int64")
    report = lowering.call_runtime(LOOP, [*counts, trips, going, *values, *compiled.weights], kind, "loop")
    if asked or body.asks or not is_going or steps is None:
        names = ["loop", "steps", *(f"result_{axis}" for _, axis in asked)]
        _, taken, *read = lowering.sizes_from(report, names)
        steps = steps if not body.asks and is_going and steps is not None else taken
        for (place, axis), size in zip(asked, read, strict=True):
            compiled.results[place][0][axis] = size
    return _results(lowering, body, compiled, report, steps)


def _results(
    lowering: Lowering, body: LoopBody, compiled: _CompiledBody, report: relax.Var, steps: Any
) -> list[relax.Expr]:
    """The node's outputs, once the loop has ended."""
    results: list[relax.Expr] = []
    place = itertools.count()
    for result in body.results:
        if result.kept is not None:
            results.append(lowering.tensor(result.kept))
            continue
        number = next(place)
        sizes, dtype = compiled.results[number]
        axis = -1
        if result.axis is not None:
            axis = _within(result.axis, len(sizes) + 1, "slices")
            sizes = [*sizes[:axis], steps, *sizes[axis:]]
        kind = relax.TensorType([lowering.sizes.expression(size) for size in sizes], dtype)
        arguments = [number, axis, int(result.is_backward), report]
        results.append(lowering.call_runtime(LOOP_RESULT, arguments, kind, "loop_result"))
    return results


def _compiled(lowering: Lowering, node: ir.Node, body: LoopBody) -> _CompiledBody:
    """Lower the body, and make its weights weights of the function around it.

    States are first declared to keep their sizes. If the body turns out to change some, it is lowered again with
    sizes of their own for these.
    """
    graph, first = body.graph, len(lowering.bodies)
    graph.opset_imports.update(lowering.model.graph.opset_imports)
    for value in list(graph.initializers.values()):
        del graph.initializers[str(value.name)]
        value.name = f"{node_name(node)}.{value.name}"
    changing: set[tuple[ir.Value, int]] = set()
    while True:
        _declare(lowering, body, changing)
        inside = BodyLowering(lowering, ir.Model(graph, ir_version=lowering.model.ir_version))
        lowered = inside.run()
        newly_changing = _changing(inside, body) - changing
        if not newly_changing:
            break
        changing |= newly_changing
        del lowering.bodies[first:]
    lowering.bodies.append(lowered)
    for budget, beyond in lowered.beyond.items():
        lowering.beyond.setdefault(budget, []).extend(beyond)
    outside = {
        size: outer_size
        for inner, outer in body.outside.items()
        for axis, (size, outer_size) in enumerate(zip(inside.shape(inner), lowering.shape(outer), strict=True))
        if isinstance(size, tirx.Var) and (inner, axis) not in changing
    }
    if body.asks and inside.dtype(graph.outputs[0]) != "bool":
        raise UnsupportedError(f"its condition to go on is {inside.dtype(graph.outputs[0])}; expected bool")
    inner_outputs = graph.outputs[int(body.asks) :]
    results = [
        ([_outside(size, outside) for size in inside.dimensions(value)], inside.dtype(value)) for value in inner_outputs
    ]
    weights = [
        lowering.add_weight(weight.name, weight.shape, weight.dtype, weight.load)
        if weight.shape
        else lowering.add_number(weight.name, weight.array)
        for weight in lowered.weights
    ]
    return _CompiledBody(len(lowering.bodies) - 1, results, weights)


def _declare(lowering: Lowering, body: LoopBody, changing: Collection[tuple[ir.Value, int]]) -> None:
    """Give the body's inputs types and sizes; a dynamic size is a name, shared by all sizes known to be equal."""
    names: list[tuple[Any, str]] = []
    for inner, outer in body.outside.items():
        inner.type = ir.TensorType(ir.DataType.from_numpy(DTYPES[lowering.dtype(outer)]))
        own = [(inner, axis) in changing for axis in range(len(lowering.dimensions(outer)))]
        sizes = zip(lowering.dimensions(outer), own, strict=True)
        inner.shape = ir.Shape([_name(lowering, None if is_own else size, names) for size, is_own in sizes])


def _name(lowering: Lowering, size: Any, names: list[tuple[Any, str]]) -> int | str:
    """Number or name of a size in the body; ``None`` equals no other size. ``names``: the names given so far."""
    if isinstance(size, int):
        return size
    others = [] if size is None else [pair for pair in names if pair[0] is not None]
    equal = (name for other, name in others if lowering.sizes.equal(size, other))
    name = next(equal, f"size_{len(names)}")
    names.append((size, name))
    return name


def _changing(inside: Lowering, body: LoopBody) -> set[tuple[ir.Value, int]]:
    """The axes of states whose size may change in a step.

    Raises UnsupportedError for another type or another number of axes."""
    changing: set[tuple[ir.Value, int]] = set()
    for after, state in body.states.items():
        have, want = inside.dimensions(after), inside.dimensions(state)
        if len(have) != len(want) or inside.dtype(after) != inside.dtype(state):
            raise UnsupportedError(
                f"it carries {state.name!r}, {inside.dtype(state)}{want} before a step and {inside.dtype(after)}{have} "
                "behind it; expected that it keeps its type and the number of its axes"
            )
        changing |= {
            (state, axis) for axis, pair in enumerate(zip(have, want, strict=True)) if not inside.sizes.equal(*pair)
        }
    return changing


def _outside(size: Any, outside: Mapping[tirx.Var, Any]) -> Any:
    """A size of a body in terms of sizes of the function around it; None where it does not follow from these."""
    if isinstance(size, int):
        return size
    if not set(tirx.analysis.undefined_vars(size)) <= set(outside):
        return None
    return tvm_ffi.structural_map(size, [(tvm.ir.Var, lambda variable: outside.get(variable, variable))])


def _trips(lowering: Lowering, body: LoopBody) -> tuple[relax.Expr, Any]:
    """After how many steps the loop ends at the latest, int64 [1], and the same as a size where that is known."""
    if body.scanned:
        lengths = []
        for value, axis in body.scanned:
            sizes = lowering.dimensions(value)
            lengths.append(sizes[_within(axis, len(sizes), f"{value.name!r}")])
        needed = [
            requirement
            for length in lengths[1:]
            for requirement in lowering.require(
                lowering.sizes.same(lengths[0], length), f"it scans axes of {lengths[0]} and {length}", "equal sizes"
            )
        ]
        return lowering.checked(lowering.materialise(StaticValue.of([lengths[0]])), needed), lengths[0]
    if body.trips is None:
        return lowering.materialise(StaticValue.of([_ENDLESS])), None
    static = lowering.static(body.trips)
    steps = None if static is None or static.elements.size != 1 else lowering.sizes.at_least(static.elements.item(), 0)
    return _single(lowering, body.trips, "int64"), steps


def _going(lowering: Lowering, body: LoopBody) -> tuple[relax.Expr, bool]:
    """Whether the loop has a first step, bool [1] or of no axes, and whether it is known to have."""
    if body.going is None:
        return lowering.emit(relax.const(np.array(True), "bool")), True
    static = lowering.static(body.going)
    is_known = static is not None and static.numbers is not None and bool(static.numbers.all())
    return _single(lowering, body.going, "bool"), is_known


def _single(lowering: Lowering, value: ir.Value, dtype: str) -> relax.Expr:
    sizes = lowering.dimensions(value)
    if sizes not in ([], [1]) or lowering.dtype(value) != dtype:
        raise UnsupportedError(f"{value.name!r} is {lowering.dtype(value)}{sizes}; expected one {dtype}")
    return lowering.reshape(lowering.tensor(value), []) if sizes else lowering.tensor(value)


def _within(axis: int, rank: int, what: str) -> int:
    if not -rank <= axis < rank:
        raise UnsupportedError(f"axis {axis} of {what}, which has {rank}; expected one from {-rank} to {rank - 1}")
    return axis % rank


CONVERTERS: dict[str, Converter] = {"Loop": lower_loop, "Scan": lower_loop}
"""Apart from other operators', for a target's host code has to take the steps."""
