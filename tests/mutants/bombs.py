"""Small files that ask for much, of random size, in the forms that a reader would expand without asking."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_node = helper.make_node


def _model(
    nodes: list[NodeProto], constants: dict[str, list[int]], functions: list = (), output: str = "y"
) -> ModelProto:  # type: ignore[type-arg, assignment]
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T"]), helper.make_tensor_value_info(output, 1, None)
    tensors = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("own", 1)]
    graph = helper.make_graph(nodes, "bomb", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def _cast_and_add(name: str) -> list[NodeProto]:
    return [
        _node("Cast", [name], ["f"], to=TensorProto.FLOAT),
        _node("ReduceSum", ["f"], ["total"], keepdims=0),
        _node("Add", ["x", "total"], ["y"]),
    ]


def functions(rng: random.Random) -> ModelProto:
    """Each function calls the one before it twice."""
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F0", ["a"], ["c"], [_node("Neg", ["a"], ["c"])], imports)]
    for level in range(1, rng.choice([5, 11, 20, 60])):
        called = f"F{level - 1}"
        body = [_node(called, ["a"], ["b"], domain="own"), _node(called, ["b"], ["c"], domain="own")]
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["c"], body, imports))
    rng.shuffle(functions)
    top = max(functions, key=lambda function: int(function.name[1:])).name
    return _model([_node(top, ["x"], ["y"], domain="own")], {}, functions)


def chain_of_functions(rng: random.Random) -> ModelProto:
    """Each function calls the one before it once: deep, not large. Sometimes the first calls the last."""
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("own", 1)]
    depth = rng.choice([3, 100, 2000])
    first = f"F{depth - 1}" if rng.random() < 0.3 else ""
    start = _node(first or "Neg", ["a"], ["c"], domain="own" if first else "")
    functions = [helper.make_function("own", "F0", ["a"], ["c"], [start], imports)]
    for level in range(1, depth):
        body = [_node(f"F{level - 1}", ["a"], ["c"], domain="own")]
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["c"], body, imports))
    return _model([_node(f"F{depth - 1}", ["x"], ["y"], domain="own")], {}, functions)


def doubling(rng: random.Random) -> ModelProto:
    """Each Concat doubles a constant, or each Add doubles how often it is used."""
    operator = rng.choice(["Concat", "Add"])
    nodes = []
    levels = rng.choice([8, 20, 40])
    for level in range(levels):
        options = {"axis": 0} if operator == "Concat" else {}
        nodes.append(_node(operator, [f"c{level}"] * 2, [f"c{level + 1}"], **options))
    return _model([*nodes, *_cast_and_add(f"c{levels}")], {"c0": [1, 2, 3]})


def large_constant(rng: random.Random) -> ModelProto:
    """One operator with small constant inputs and a large result."""
    size = rng.choice([1000, 10**6, 10**9, 2**31, 2**40, 2**62, -1])
    nodes, constants = {
        "Expand": (lambda: ([_node("Expand", ["one", "size"], ["c"])], {"one": [1], "size": [size]})),
        "Tile": (lambda: ([_node("Tile", ["one", "size"], ["c"])], {"one": [1], "size": [size]})),
        "ConstantOfShape": (lambda: ([_node("ConstantOfShape", ["size"], ["c"])], {"size": [size, 2]})),
        "Range": (
            lambda: ([_node("Range", ["zero", "size", "one"], ["c"])], {"zero": 0, "size": size, "one": 1})
        ),
        "OneHot": (
            lambda: ([_node("OneHot", ["ids", "size", "pair"], ["c"])], {"ids": [0, 3], "size": size, "pair": [0, 1]})
        ),
        "Pad": (lambda: ([_node("Pad", ["one", "pads"], ["c"])], {"one": [1], "pads": [0, size]})),
        "EyeLike": (
            lambda: (
                [_node("ConstantOfShape", ["size"], ["z"]), _node("EyeLike", ["z"], ["c"])],
                {"size": [min(size, 10**6), min(size, 10**6)]},
            )
        ),
        "Resize": (
            lambda: ([_node("Resize", ["one", "", "", "size"], ["c"])], {"one": [1], "size": [size]})
        ),
    }[rng.choice(["Expand", "Tile", "ConstantOfShape", "Range", "OneHot", "Pad", "EyeLike", "Resize"])]()  # fmt: skip
    return _model([*nodes, *_cast_and_add("c")], constants)  # type: ignore[arg-type]


def outer_product(rng: random.Random) -> ModelProto:
    """Broadcasting makes a small vector large, several times."""
    nodes = [_node("Range", ["zero", "limit", "one"], ["r0"])]
    for level in range(rng.choice([1, 3, 6])):
        nodes.append(_node("Unsqueeze", [f"r{level}", "axes"], [f"u{level}"]))
        nodes.append(_node("Mul", [f"r{level}", f"u{level}"], [f"r{level + 1}"]))
    last = nodes[-1].output[0]
    return _model([*nodes, *_cast_and_add(last)], {"zero": 0, "one": 1, "limit": 1000, "axes": [-1]})  # type: ignore[dict-item]


def long_chain(rng: random.Random) -> ModelProto:
    """Many nodes one behind the other."""
    length = rng.choice([100, 1000, 3000])
    nodes = [_node("Neg", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(length)]
    nodes.append(_node("Add", [f"v{length}", "x"], ["y"]))
    if rng.random() < 0.5:
        rng.shuffle(nodes)
    if rng.random() < 0.3:
        nodes[0].input[0] = "y"
    return _model(nodes, {})


BOMBS: tuple[Callable[[random.Random], ModelProto], ...] = (
    functions,
    chain_of_functions,
    doubling,
    large_constant,
    outer_product,
    long_chain,
)
