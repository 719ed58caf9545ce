"""Ways to write the nodes of a graph otherwise without a change of what it computes.

A rewrite changes a graph in place where it finds what it is for, and says whether it did. Outputs of the graph keep
their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Graph = onnx.GraphProto
Rewrite = Callable[[Graph, np.random.Generator], bool]


def _insert(graph: Graph, position: int, nodes: Sequence[onnx.NodeProto], replaced: bool) -> None:
    """Put nodes at the position, in place of the one that is there or before it."""
    every = list(graph.node)
    del graph.node[:]
    graph.node.extend([*every[:position], *nodes, *every[position + replaced :]])


def _fresh(graph: Graph, count: int, prefix: str = "value") -> list[str]:
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {
        tensor.name for tensor in graph.initializer
    }
    names = (f"{prefix}_{number}" for number in range(len(taken) + count))
    return [name for name in names if name not in taken][:count]


def _constant(graph: Graph, data: Any, dtype: Any) -> str:
    (name,) = _fresh(graph, 1, "constant")
    graph.initializer.append(numpy_helper.from_array(np.array(data, dtype), name))
    return name


def _positions(graph: Graph, *op_types: str) -> list[int]:
    return [position for position, node in enumerate(graph.node) if node.op_type in op_types]


def _one(generator: np.random.Generator, positions: Sequence[int]) -> int | None:
    return int(generator.choice(positions)) if positions else None


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def rename(graph: Graph, generator: np.random.Generator) -> bool:
    """All names but those of inputs and outputs of the graph."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names = {name for node in graph.node for name in (*node.input, *node.output)} - kept
    shuffled = {name: f"v{number}" for number, name in enumerate(generator.permutation(sorted(names)))}
    for node in graph.node:
        node.name = ""
        node.input[:] = [shuffled.get(name, name) for name in node.input]
        node.output[:] = [shuffled.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = shuffled.get(tensor.name, tensor.name)
    return True


def constants_as_nodes(graph: Graph, generator: np.random.Generator) -> bool:
    tensors = list(graph.initializer)
    del graph.initializer[:]
    _insert(graph, 0, [helper.make_node("Constant", [], [one.name], value=one) for one in tensors], replaced=False)
    return bool(tensors)


def detour(graph: Graph, generator: np.random.Generator) -> bool:
    """What a node computes takes a way round that changes nothing."""
    position = _one(generator, _positions(graph, "MatMul", "Softmax", "Div", "Mul", "Einsum", "Gemm", "Relu", "Gelu"))
    if position is None:
        return False
    node = graph.node[position]
    first, second = _fresh(graph, 2)
    result, node.output[0] = node.output[0], first
    axes, one, zero = (_constant(graph, data, dtype) for data, dtype in (([0], np.int64), (1, "f4"), (0, "f4")))
    ways = [
        [helper.make_node("Identity", [first], [result])],
        [helper.make_node("Unsqueeze", [first, axes], [second]), helper.make_node("Squeeze", [second, axes], [result])],
        [helper.make_node("Mul", [first, one], [result])],
        [helper.make_node("Sub", [first, zero], [result])],
        [helper.make_node("Shape", [first], [second]), helper.make_node("Reshape", [first, second], [result])],
        [helper.make_node("Neg", [first], [second]), helper.make_node("Neg", [second], [result])],
        [helper.make_node("Cast", [first], [second], to=11), helper.make_node("Cast", [second], [result], to=1)],
        [helper.make_node("Concat", [first], [result], axis=0)],
    ]
    _insert(graph, position + 1, ways[generator.integers(len(ways))], replaced=False)
    if ways[4][0] in graph.node:
        graph.node[position + 2].attribute.append(helper.make_attribute("allowzero", 1))
    return True


def transposed_twice(graph: Graph, generator: np.random.Generator) -> bool:
    """A product of matrices as the transpose of the product of their transposes."""
    position = _one(generator, [at for at in _positions(graph, "MatMul") if graph.node[at].input[0] == "x"])
    if position is None:
        return False
    node = graph.node[position]
    left, right, turned = _fresh(graph, 3)
    swap = {"perm": [1, 0]}
    nodes = [
        helper.make_node("Transpose", [node.input[0]], [left], **swap),
        helper.make_node("Transpose", [node.input[1]], [right], **swap),
        helper.make_node("MatMul", [right, left], [turned]),
        helper.make_node("Transpose", [turned], list(node.output), **swap),
    ]
    _insert(graph, position, nodes, replaced=True)
    return True


def product_otherwise(graph: Graph, generator: np.random.Generator) -> bool:
    """The product of x as an Einsum or a Gemm."""
    position = _one(generator, [at for at in _positions(graph, "MatMul") if graph.node[at].input[0] == "x"])
    if position is None:
        return False
    node = graph.node[position]
    if generator.random() < 0.5:
        otherwise = helper.make_node("Einsum", list(node.input), list(node.output), equation="ab,bc->ac")
    else:
        otherwise = helper.make_node("Gemm", list(node.input), list(node.output))
    _insert(graph, position, [otherwise], replaced=True)
    return True


def gemm_as_matmul(graph: Graph, generator: np.random.Generator) -> bool:
    position = _one(generator, [at for at in _positions(graph, "Gemm") if len(graph.node[at].input) == 3])
    if position is None:
        return False
    node = graph.node[position]
    turned, product = _fresh(graph, 2)
    swaps = _attribute(node, "transB", 0)
    nodes = [helper.make_node("Transpose", [node.input[1]], [turned], perm=[1, 0])] if swaps else []
    nodes.append(helper.make_node("MatMul", [node.input[0], turned if swaps else node.input[1]], [product]))
    nodes.append(helper.make_node("Add", [node.input[2], product], list(node.output)))
    _insert(graph, position, nodes, replaced=True)
    return True


def softmax_by_hand(graph: Graph, generator: np.random.Generator) -> bool:
    position = _one(generator, _positions(graph, "Softmax"))
    if position is None:
        return False
    node = graph.node[position]
    largest, shifted, powers, total = _fresh(graph, 4)
    axes = _constant(graph, [_attribute(node, "axis", -1)], np.int64)
    nodes = [
        helper.make_node("ReduceMax", [node.input[0], axes], [largest], keepdims=1),
        helper.make_node("Sub", [node.input[0], largest], [shifted]),
        helper.make_node("Exp", [shifted], [powers]),
        helper.make_node("ReduceSum", [powers, axes], [total], keepdims=1),
        helper.make_node("Div", [powers, total], list(node.output)),
    ]
    _insert(graph, position, nodes, replaced=True)
    return True


def activation_by_hand(graph: Graph, generator: np.random.Generator) -> bool:
    position = _one(generator, _positions(graph, "Sigmoid", "Relu", "Gelu"))
    if position is None:
        return False
    node = graph.node[position]
    a, b, c, d = _fresh(graph, 4)
    (x,), y = node.input, list(node.output)
    one, zero, half = (_constant(graph, number, "f4") for number in (1, 0, 0.5))
    root = _constant(graph, np.sqrt(2), "f4")
    spellings = {
        "Sigmoid": [
            helper.make_node("Neg", [x], [a]),
            helper.make_node("Exp", [a], [b]),
            helper.make_node("Add", [one, b], [c]),
            helper.make_node("Reciprocal", [c], y),
        ],
        "Relu": [helper.make_node("Max", [x, zero], y)],
        "Gelu": [
            helper.make_node("Div", [x, root], [a]),
            helper.make_node("Erf", [a], [b]),
            helper.make_node("Add", [b, one], [c]),
            helper.make_node("Mul", [x, c], [d]),
            helper.make_node("Mul", [d, half], y),
        ],
    }
    _insert(graph, position, spellings[node.op_type], replaced=True)
    return True


def split_as_slices(graph: Graph, generator: np.random.Generator) -> bool:
    """Halves of an axis of ten."""
    position = _one(generator, _positions(graph, "Split"))
    if position is None:
        return False
    node = graph.node[position]
    axis = _constant(graph, [_attribute(node, "axis", 0)], np.int64)
    bounds = [_constant(graph, [bound], np.int64) for bound in (0, 5, np.iinfo(np.int64).max)]
    nodes = [
        helper.make_node("Slice", [node.input[0], bounds[half], bounds[half + 1], axis], [output])
        for half, output in enumerate(node.output)
    ]
    _insert(graph, position, nodes, replaced=True)
    return True


def stacked_weights(graph: Graph, generator: np.random.Generator) -> bool:
    """Stacked weights of experts as a Concat of one expert each."""
    stacks = [tensor for tensor in graph.initializer if len(tensor.dims) == 3]
    if not stacks:
        return False
    tensor = stacks[generator.integers(len(stacks))]
    parts = np.split(numpy_helper.to_array(tensor), tensor.dims[0])
    names = [_constant(graph, part, "f4") for part in parts]
    graph.initializer.remove(tensor)
    _insert(graph, 0, [helper.make_node("Concat", names, [tensor.name], axis=0)], replaced=False)
    return True


def swapped_operands(graph: Graph, generator: np.random.Generator) -> bool:
    position = _one(generator, _positions(graph, "Mul", "Add"))
    if position is None:
        return False
    node = graph.node[position]
    node.input[:] = [node.input[1], node.input[0]]
    return True


REWRITES: list[Rewrite] = [
    rename,
    constants_as_nodes,
    detour,
    transposed_twice,
    product_otherwise,
    gemm_as_matmul,
    softmax_by_hand,
    activation_by_hand,
    split_as_slices,
    stacked_weights,
    swapped_operands,
]
