"""Loop and Scan, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from moec.passes.control_flow.bodies import Inliner
from moec.passes.graph.writer import NotDecomposableError, dtype_of
from moec.passes.shapes.bodies import never_asks

_TRUE = np.array(True)
_UNCOUNTED = 256
"""Number of steps of a loop without a trip count that are searched for one after which its condition is false."""


def unroll_loop(write: Inliner) -> list[ir.Value]:
    """Write the steps of a Loop, each on the values that the one before carries on.

    Raises NotDecomposableError if the number of steps, or the size of a scan output, is not known.
    """
    body, carried = write.body("body"), [write.required(i, "v_initial") for i in range(2, len(write.node.inputs))]
    scanned: list[list[ir.Value]] = [[] for _ in write.node.outputs[len(carried) :]]
    going = write.input(1) or write.constant(_TRUE, "going")
    if (trips := write.element(write.input(0))) is not None and never_asks(body):
        write.expect_room(body, trips)
    is_certain = True
    for step in _steps(write):
        if write.element(going) == 0:
            break
        is_certain = is_certain and bool(write.element(going))
        if not is_certain and scanned:
            raise NotDecomposableError("the number of slices of its scan outputs is known only when the model runs")
        condition, *results = write.inline(body, [_numbered(write, body, step), going, *carried])
        if len(results) != len(write.node.outputs):
            raise NotDecomposableError(f"its body makes {len(results)} values; expected {len(write.node.outputs)}")
        for slices, result in zip(scanned, results[len(carried) :], strict=True):
            slices.append(result)
        if is_certain:
            carried, going = results[: len(carried)], condition
            continue
        carried = [write.choose(going, new, old, str(new.name)) for new, old in zip(results, carried, strict=True)]
        going = write.add("And", going, condition)
    outputs = body.outputs[1 + len(carried) :]
    return [*carried, *(_stacked(write, *pair) for pair in zip(scanned, outputs, strict=True))]


def _numbered(write: Inliner, body: ir.Graph, step: int) -> ir.Value:
    """The number of a step, with one axis where the body takes it so."""
    has_axis = len(body.inputs) > 0 and body.inputs[0].shape is not None and len(body.inputs[0].shape) == 1
    return write.numbers(step) if has_axis else write.number(step)


def _steps(write: Inliner) -> Iterator[int]:
    """Raises NotDecomposableError where nothing known now ends the loop."""
    trips = write.element(write.input(0))
    if trips is not None:
        return iter(range(trips))
    if write.input(0) is not None:
        raise NotDecomposableError(
            "the number of its steps is known only when the model runs; expected a trip count that is constant, or "
            "follows from sizes that are: give these axes fixed sizes, or write the loop as operators on whole tensors"
        )
    return _uncounted()


def _uncounted() -> Iterator[int]:
    yield from range(_UNCOUNTED)
    raise NotDecomposableError(
        "the number of its steps is known only when the model runs: it has no trip count, and "
        f"{_UNCOUNTED} steps do not end it"
    )


def unroll_scan(write: Inliner) -> list[ir.Value]:
    """The steps of a Scan, each on a slice of every scan input.

    Raises NotDecomposableError where the size of a scanned axis is not known.
    """
    node, body = write.node, write.body("body")
    count = write.attribute("num_scan_inputs", 0)
    inputs = [write.required(index, "input") for index in range(len(node.inputs))]
    if not 0 < count <= len(inputs) or len(body.outputs) != len(node.outputs):
        raise NotDecomposableError(
            f"num_scan_inputs is {count}, with {len(inputs)} inputs and {len(node.outputs)} outputs"
        )
    carried, scanned = inputs[:-count], inputs[-count:]
    scan_outputs = len(node.outputs) - len(carried)
    sources = _scans(write, count, "scan_input")
    length = _length(scanned, sources)
    write.expect_room(body, length)
    results: list[list[ir.Value]] = [[] for _ in range(scan_outputs)]
    for step in range(length):
        slices = [_slice(write, *pair, step, length) for pair in zip(scanned, sources, strict=True)]
        results_of_step = write.inline(body, [*carried, *slices])
        carried = results_of_step[: len(carried)]
        for list_, value in zip(results, results_of_step[len(carried) :], strict=True):
            list_.append(value)
    targets = _scans(write, scan_outputs, "scan_output")
    stacked = []
    for values, output, scan in zip(results, body.outputs[len(carried) :], targets, strict=True):
        stacked.append(_stacked(write, values[::-1] if scan.is_backward else values, output, scan.axis))
    return [*carried, *stacked]


@dataclasses.dataclass(frozen=True)
class _ScanSpec:
    """Along which axis, and whether from its end, an input is read or an output written."""

    axis: int
    is_backward: bool


def _scans(write: Inliner, count: int, kind: str) -> list[_ScanSpec]:
    axes = write.attribute(f"{kind}_axes", None) or [0] * count
    directions = write.attribute(f"{kind}_directions", None) or [0] * count
    if len(axes) != count or len(directions) != count:
        raise NotDecomposableError(f"{kind}_axes and {kind}_directions are {axes} and {directions}; expected {count}")
    return [_ScanSpec(axis, bool(direction)) for axis, direction in zip(axes, directions, strict=True)]


def _length(scanned: Sequence[ir.Value], sources: Sequence[_ScanSpec]) -> int:
    """The size of the scanned axes, which every input must be known to have."""
    sizes = set[int | str | None]()
    for value, scan in zip(scanned, sources, strict=True):
        rank = 0 if value.shape is None else len(value.shape)
        if value.shape is None or not -rank <= scan.axis < rank:
            raise NotDecomposableError(f"the rank of {value.name} is not known, or it has no axis {scan.axis}")
        size = value.shape[scan.axis]
        sizes.add(size if isinstance(size, int) else size.value)
    length = next(iter(sizes))
    if len(sizes) > 1 or not isinstance(length, int):
        shown = " and ".join(sorted(map(str, sizes)))
        raise NotDecomposableError(
            f"it scans axes of size {shown}; expected one fixed size: give these axes a fixed size when you export the "
            "model"
        )
    return length


def _slice(write: Inliner, value: ir.Value, scan: _ScanSpec, step: int, length: int) -> ir.Value:
    index = write.number(length - 1 - step if scan.is_backward else step)
    return write.move("Gather", value, index, axis=scan.axis)


def _stacked(write: Inliner, values: Sequence[ir.Value], output: ir.Value, axis: int = 0) -> ir.Value:
    """Stack the values along a new axis. ``output`` is the body's, whose type gives the shape if there are no
    values."""
    if not values:
        return _nothing(write, output, axis)
    axes = write.numbers(axis)
    slices = [write.move("Unsqueeze", value, axes) for value in values]
    return write.move("Concat", slices[0], *slices[1:], axis=axis)


def _nothing(write: Inliner, output: ir.Value, axis: int) -> ir.Value:
    """An empty value. Raises NotDecomposableError if the shape of a slice is not known."""
    if output.shape is None or not output.shape.is_static():
        raise NotDecomposableError("its body never runs, and the shape of its scan outputs is not known")
    shape = list(output.shape.numpy())
    shape.insert(axis if axis >= 0 else axis + len(shape) + 1, 0)
    return write.constant(np.zeros(shape, dtype_of(output, str(output.name)).numpy()), "nothing")
