"""Runs of a model on calibration data: the tokens that each block sees, and the outputs with integer blocks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.specs import tensor_specs
from moec.ir.dialect import is_moec
from moec.ir.interpreter import EvaluationError, Evaluator
from moec.ir.states import states_of
from moec.runtime.inputs import InputCheck

Array = np.ndarray[Any, Any]


class Replaceable(Protocol):
    """A block between two values of a graph that integers can replace."""

    @property
    def tokens(self) -> ir.Value: ...
    @property
    def output(self) -> ir.Value: ...
    def as_tokens(self, array: Array) -> Array: ...


@dataclasses.dataclass(frozen=True)
class FloatRun:
    """Arrays of a run in floats. ``tokens``: the input of each block, in the order of the blocks and as the block takes
    it; ``results``: the outputs of the blocks, as the graph holds them; ``outputs``: of the model, by name."""

    tokens: list[Array]
    results: list[Array]
    outputs: dict[str, Array]


def run_floats(model: ir.Model, blocks: Sequence[Replaceable], inputs: Mapping[str, Array]) -> FloatRun:
    """Run the model unchanged. Raises InputError naming an input that is missing, unknown, misshapen or not finite, or
    the node that cannot take the data."""
    feeds = feeds_of(model, inputs)
    count, targets = len(blocks), [*(block.tokens for block in blocks), *(block.output for block in blocks)]
    arrays = evaluate_data(model, feeds, [*targets, *model.graph.outputs])
    tokens = [block.as_tokens(array) for block, array in zip(blocks, arrays[:count], strict=True)]
    return FloatRun(tokens, arrays[count : 2 * count], _named(model, arrays[2 * count :]))


def run_with(
    model: ir.Model,
    blocks: Sequence[Replaceable],
    inputs: Mapping[str, Array],
    compute: Callable[[int, Array], Array],
) -> dict[str, Array]:
    """The model's outputs with ``compute(i, tokens)`` in place of the i-th block, in the order of the graph."""
    feeds = feeds_of(model, inputs)
    for index, block in enumerate(blocks):
        (tokens,) = evaluate(model, feeds, [block.tokens])
        result = compute(index, block.as_tokens(tokens))
        feeds[block.output] = result.reshape(tokens.shape).astype(tokens.dtype)
    return _named(model, evaluate(model, feeds, list(model.graph.outputs)))


@contextlib.contextmanager
def unrounded(model: ir.Model) -> Iterator[bool]:
    """A context in which products round no operands, whatever their ``arithmetic`` says. Yields whether any product
    rounded before."""
    nodes = [node for node in model.graph if is_moec(node) and "arithmetic" in node.attributes]
    kept = [node.attributes.pop("arithmetic") for node in nodes]
    try:
        yield any(attribute.value != "float32" for attribute in kept)
    finally:
        for node, attribute in zip(nodes, kept, strict=True):
            node.attributes.add(attribute)


def feeds_of(model: ir.Model, inputs: Mapping[str, Array]) -> dict[ir.Value, Array]:
    """Calibration data by value. Caches that it leaves out are empty.

    Raises InputError naming an input that is missing, unknown, misshapen or not finite."""
    expected = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    by_name = {str(value.name): value for value in expected}
    unknown = set(inputs) - set(by_name)
    if unknown:
        raise InputError(
            f"calibration data has {sorted(unknown)[0]!r}; expected inputs of the model: {', '.join(by_name)}"
        )
    inputs = {**_empty_caches(model, inputs), **inputs}
    InputCheck(tensor_specs(expected))(inputs)
    for name, array in inputs.items():
        if np.issubdtype(array.dtype, np.integer) and not array.size:
            raise InputError(f"calibration data for {name!r} has the shape {array.shape}; expected numbers")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise InputError(f"calibration data for {name!r} has numbers that are not finite; leave them out")
    return {value: np.asarray(inputs[name]) for name, value in by_name.items()}


def _empty_caches(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Empty arrays for the growing states of a model that ``inputs`` leave out. Named sizes are those of the other
    inputs."""
    specs = {spec.name: spec for spec in tensor_specs(model.graph.inputs)}
    sizes = {
        size: length
        for name, array in inputs.items()
        if name in specs
        for size, length in zip(specs[name].shape, array.shape, strict=False)
    }
    caches: dict[str, Array] = {}
    for state in states_of(model):
        if state.axis is None or state.input in inputs:
            continue
        spec = specs[state.input]
        shape = [size if isinstance(size, int) else sizes.get(size) for size in spec.shape]
        shape[state.axis] = 0
        if None not in shape:
            caches[state.input] = np.zeros([size or 0 for size in shape], dtype_of(spec.dtype))
    return caches


def evaluate(model: ir.Model, feeds: Mapping[ir.Value, Array], outputs: Sequence[ir.Value]) -> list[Array]:
    """The arrays of ``outputs``. Runs only the nodes that they need and that the feeds do not replace."""
    needed: set[ir.Node] = set()
    pending = [value for value in outputs if value not in feeds]
    while pending:
        node = pending.pop().producer()
        if node is None or node in needed:
            continue
        needed.add(node)
        pending.extend(value for value in _inputs_of(node) if value not in feeds)
    nodes = [node for node in model.graph if node in needed]
    computed = [value for value in outputs if value not in feeds]
    used = {value for node in nodes for value in _inputs_of(node)}
    used_feeds = {value: array for value, array in feeds.items() if value in used}
    evaluator = Evaluator(nodes, used_feeds, computed, model.opset_imports, model.functions.values())
    results = dict(zip(computed, evaluator.run(used_feeds), strict=True))
    return [feeds[value] if value in feeds else results[value] for value in outputs]


def evaluate_data(model: ir.Model, feeds: Mapping[ir.Value, Array], outputs: Sequence[ir.Value]) -> list[Array]:
    """:func:`evaluate` on calibration data. Raises InputError naming a node that cannot take it, such as an embedding
    whose table has no row for an id."""
    try:
        return evaluate(model, feeds, outputs)
    except EvaluationError as error:
        raise InputError(f"the model cannot take the calibration data: {error}") from error


def _inputs_of(node: ir.Node) -> list[ir.Value]:
    """The values that a node takes, including those that its subgraphs take from outside."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attribute.is_ref():
            graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            values += [value for graph in graphs for inner in graph for value in _inputs_of(inner)]
    return values


def _named(model: ir.Model, outputs: Sequence[Array]) -> dict[str, Array]:
    return {str(value.name): array for value, array in zip(model.graph.outputs, outputs, strict=True)}
