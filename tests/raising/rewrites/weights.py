"""Other layouts of weights: stacked, apart, merged, transposed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..edit import Writer, array_of, attribute, ints, nodes, rank, some, substitute
from ..registry import rewrite
from .products import Linear, linears, plus_bias


def _weights(model: ir.Model, *ranks: int) -> list[ir.Value]:
    """Float constants that nodes use, without those in branches."""
    values = [value for value in model.graph.initializers.values() if value.uses() and rank(value) in ranks]
    return [
        value
        for value in values
        if value.dtype == ir.DataType.FLOAT and all(user.graph is model.graph for user, _ in value.uses())
    ]


def _first_user(model: ir.Model, values: list[ir.Value]) -> ir.Node:
    users = {user for value in values for user, _ in value.uses()}
    return next(node for node in model.graph if node in users)


def _use_instead(old: ir.Value, new: ir.Value, but: ir.Node | None = None) -> None:
    for user, place in list(old.uses()):
        if user is not but:
            user.replace_input_with(place, new)


def _spell(
    model: ir.Model,
    random: np.random.Generator,
    ranks: tuple[int, ...],
    spelled: Callable[[Writer, np.ndarray], ir.Value],
) -> ir.Model | None:
    """Replace some constants of these ranks by nodes that ``spelled`` writes for their numbers."""
    chosen = some(random, _weights(model, *ranks))
    for value in chosen:
        array = array_of(value)
        assert array is not None
        _use_instead(value, spelled(Writer(model, _first_user(model, [value])), array))
    return model if chosen else None


@rewrite
def stack_as_concat_of_experts(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Stacked weights [E,...] as a Concat of [1,...] or of unsqueezed [...]."""

    def spelled(write: Writer, array: np.ndarray) -> ir.Value:
        parts = [write.constant(part.copy()) for part in array]
        return write.op("Concat", *(write.op("Unsqueeze", part, ints(0)) for part in parts), axis=0)

    return _spell(model, random, (3,), spelled)


@rewrite
def stack_as_rows_of_a_matrix(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Stacked weights [E,a,b] stored as [E*a,b] and reshaped."""

    def spelled(write: Writer, array: np.ndarray) -> ir.Value:
        return write.op("Reshape", write.constant(array.reshape(-1, array.shape[2])), ints(*array.shape))

    return _spell(model, random, (3,), spelled)


@rewrite
def stack_stored_otherwise(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Stacked weights [E,a,b] stored with their axes in another order."""

    def spelled(write: Writer, array: np.ndarray) -> ir.Value:
        order = [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)][random.integers(4)]
        stored = write.constant(np.ascontiguousarray(array.transpose(order)))
        return write.op("Transpose", stored, perm=[int(place) for place in np.argsort(order)])

    return _spell(model, random, (3,), spelled)


@rewrite
def experts_out_of_a_stack(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Matrices of equal shape and use, one for each expert, become slices of one stacked constant."""

    def use(value: ir.Value) -> tuple[object, ...]:
        user, place = next(iter(value.uses()))
        return (user.op_type, place, *(value.shape or ()))

    kinds = itertools.groupby(sorted(_weights(model, 2), key=lambda v: str(use(v))), key=use)
    groups = [group for _, members in kinds if len(group := list(members)) > 2]
    chosen = some(random, groups)
    for group in chosen:
        arrays = [array_of(value) for value in group]
        write = Writer(model, _first_user(model, group))
        stack = write.constant(np.stack([array for array in arrays if array is not None]))
        way = random.integers(3)
        parts = list(write.ops("Split", len(group), stack, axis=0, num_outputs=len(group))) if way == 2 else []
        for place, value in enumerate(group):
            if way == 0:
                part = write.op("Gather", stack, np.array(place), axis=0)
            elif way == 1:
                part = write.op("Squeeze", write.op("Slice", stack, ints(place), ints(place + 1), ints(0)), ints(0))
            else:
                part = write.op("Squeeze", parts[place], ints(0))
            _use_instead(value, part)
    return model if chosen else None


def _pairs_of_one_x(model: ir.Model) -> list[tuple[Linear, Linear]]:
    by_input: dict[ir.Value, list[Linear]] = {}
    for linear in linears(model):
        by_input.setdefault(linear.x, []).append(linear)
    pairs = [pair for same in by_input.values() for pair in itertools.pairwise(same)]
    alike = [
        (first, other)
        for first, other in pairs
        if first.matrix.shape == other.matrix.shape and (first.bias is None) == (other.bias is None)
    ]
    disjoint: dict[ir.Node, tuple[Linear, Linear]] = {}
    for first, other in alike:
        if first.node not in disjoint and other.node not in disjoint:
            disjoint[first.node] = disjoint[other.node] = (first, other)
    return list(dict.fromkeys(disjoint.values()))


@rewrite
def gate_and_up_merged(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Two products of the same rows become one, whose result is split."""
    chosen = some(random, _pairs_of_one_x(model))
    for pair in chosen:
        first, other = pair[:: random.choice([1, -1])]
        both = np.concatenate([first.matrix, other.matrix], axis=1)
        has_bias = first.bias is not None and other.bias is not None
        bias = np.concatenate([np.ravel(first.bias), np.ravel(other.bias)]) if has_bias else None  # type: ignore[arg-type]
        write = Writer(model, min(pair, key=lambda linear: list(model.graph).index(linear.node)).node)
        product = plus_bias(write, write.op("MatMul", first.x, both), Linear(first.node, both, bias))
        halves = write.ops("Split", 2, product, axis=1, num_outputs=2)
        substitute(first.node, halves[0])
        substitute(other.node, halves[1])
    return model if chosen else None


def _split_of(value: ir.Value) -> ir.Node | None:
    """The Split of the last axis into halves that is the only user of a value."""
    users = [user for user, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != "Split" or len(users[0].outputs) != 2 or value.is_graph_output():
        return None
    axis = attribute(users[0], "axis", 0)
    return users[0] if axis in (-1, (rank(value) or 0) - 1) and len(users[0].inputs) == 1 else None


@rewrite
def gate_and_up_apart(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """A product whose result is split into halves becomes two."""
    results = [(linear, split) for linear in linears(model) if (split := _split_of(linear.node.outputs[0]))]
    chosen = some(random, results)
    for linear, split in chosen:
        write = Writer(model, linear.node)
        bias = [None, None] if linear.bias is None else np.split(np.ravel(linear.bias), 2)
        halves = [
            plus_bias(write, write.op("MatMul", linear.x, part.copy()), Linear(linear.node, part, own))
            for part, own in zip(np.split(linear.matrix, 2, axis=1), bias, strict=True)
        ]
        substitute(split, *halves)
    return model if chosen else None


@rewrite
def gate_and_up_split_as_gathered_weights(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Gathered weights [P,2f,d] are split before they are multiplied, by Split or by Slice."""
    splits = []
    for split in nodes(model, "Split"):
        chain, product = [split], split.inputs[0]
        while product is not None and (node := product.producer()) is not None and len(product.uses()) == 1:
            chain.append(node)
            if node.op_type not in ("Squeeze", "MatMul"):
                break
            gather = node.inputs[0].producer() if node.inputs[0] is not None else None
            if (
                node.op_type == "MatMul"
                and gather is not None
                and gather.op_type == "Gather"
                and array_of(gather.inputs[0]) is not None
                and _split_of(split.inputs[0])
            ):  # type: ignore[arg-type]
                splits.append((split, chain[1:-1], node, gather.outputs[0]))
                break
            product = node.inputs[0]
    chosen = some(random, splits)
    for split, between, product, gathered in chosen:
        write = Writer(model, product)
        halves = write.ops("Split", 2, gathered, axis=1, num_outputs=2)
        results = [write.op("MatMul", half, product.inputs[1]) for half in halves]
        for node in reversed(between):
            results = [write.op(node.op_type, result, *node.inputs[1:]) for result in results]
        substitute(split, *results)
    return model if chosen else None


@rewrite
def split_as_slices(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Halves of an axis of a known size."""

    def size(node: ir.Node) -> int | None:
        value = node.inputs[0]
        result = value.shape[int(attribute(node, "axis", 0))] if value is not None and value.shape is not None else None
        return result if isinstance(result, int) else None

    chosen = some(random, [node for node in nodes(model, "Split") if len(node.inputs) == 1 and size(node)])
    for node in chosen:
        write, axis, part = (
            Writer(model, node),
            int(attribute(node, "axis", 0)),
            -(-(size(node) or 0) // len(node.outputs)),
        )
        bounds = [*range(0, size(node) or 0, part), 2**62]
        slices = [
            write.op("Slice", node.inputs[0], ints(start), ints(end), ints(axis))
            for start, end in itertools.pairwise(bounds)
        ]
        substitute(node, *slices)
    return model if chosen else None


@rewrite
def halves_as_gathers(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Halves of the last axis of a known size, taken by their places."""
    chosen = some(
        random, [node for node in nodes(model, "Split") if node.inputs[0] is not None and _split_of(node.inputs[0])]
    )
    for node in chosen:
        value = node.inputs[0]
        size = value.shape[-1] if value is not None and value.shape is not None else None
        if not isinstance(size, int):
            return None
        write = Writer(model, node)
        substitute(node, *(write.op("Gather", value, part, axis=-1) for part in np.split(np.arange(size), 2)))
    return model if chosen else None


@rewrite
def gate_and_up_interleaved(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Even outputs of a merged product are the gate, odd ones up."""
    results = [(linear, split) for linear in linears(model) if (split := _split_of(linear.node.outputs[0]))]
    chosen = some(random, results)
    for linear, split in chosen:
        write, size = Writer(model, linear.node), linear.matrix.shape[1]
        mixed = np.arange(size).reshape(2, -1).T.ravel()
        bias = None if linear.bias is None else np.ravel(linear.bias)[mixed]
        matrix = np.ascontiguousarray(linear.matrix[:, mixed])
        product = plus_bias(write, write.op("MatMul", linear.x, matrix), Linear(linear.node, matrix, bias))
        slices = [write.op("Slice", product, ints(start), ints(2**62), ints(1), ints(2)) for start in (0, 1)]
        substitute(split, *slices)
    return model if chosen else None


@rewrite
def weights_scaled_and_back(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Weights stored times four and multiplied by a quarter when used, like tensors with a scale."""
    return _spell(model, random, (2, 3), lambda write, array: write.op("Mul", write.constant(array * 4), 0.25))


@rewrite
def weight_used_twice_is_stored_twice(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, [value for value in _weights(model, 1, 2, 3) if len(value.uses()) > 1])
    for value in chosen:
        array = array_of(value)
        assert array is not None
        write = Writer(model, _first_user(model, [value]))
        user, place = list(value.uses())[-1]
        user.replace_input_with(place, write.constant(array.copy()))
    return model if chosen else None
