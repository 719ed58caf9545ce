"""Cases of one node: inputs with sizes that have names, filled for several choices of these sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from .outcomes import Array, Case

Sizes = Mapping[str, int]
Fill = Callable[[np.random.Generator, tuple[int, ...], Sizes], Array]


@dataclasses.dataclass(frozen=True)
class Input:
    """``shape`` has numbers and names of sizes; a constant has numbers alone."""

    shape: tuple[int | str, ...]
    fill: Fill
    constant: bool = False


@dataclasses.dataclass(frozen=True)
class Node:
    """``inputs`` and ``outputs`` in the order of the operator; None and "" for those left out.

    ``meaningful``: for an output, from the sizes and the inputs to the elements that mean anything.
    """

    op_type: str
    inputs: Mapping[str, Input | None]
    outputs: Sequence[str]
    attributes: Mapping[str, Any]
    sizes: Sequence[Sizes]
    domain: str = "com.microsoft"
    output_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tolerance: float = 2e-5
    meaningful: Callable[[dict[str, Array]], dict[str, Array]] | None = None


def normal(dtype: str, scale: float = 1.0) -> Fill:
    return lambda generator, shape, _: (scale * generator.standard_normal(shape)).astype(element_type(dtype))


def integers(low: int, high: int, dtype: str = "int64") -> Fill:
    return lambda generator, shape, _: generator.integers(low, high, shape).astype(dtype)


def given(array: Array) -> Input:
    return Input(array.shape, lambda *_: array, constant=True)


def element_type(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def case_of(node: Node, dtype: str, seed: int) -> Case:
    """Outputs that ``output_types`` does not name are of ``dtype``."""
    generator = np.random.default_rng(seed)
    present = {name: one for name, one in node.inputs.items() if one is not None}
    constants = {
        name: one.fill(generator, tuple(map(int, one.shape)), {}) for name, one in present.items() if one.constant
    }
    fed = {name: one for name, one in present.items() if not one.constant}
    feeds = [
        {name: one.fill(generator, tuple(_size(size, sizes) for size in one.shape), sizes) for name, one in fed.items()}
        for sizes in node.sizes
    ]
    arguments = ["" if one is None else name for name, one in node.inputs.items()]
    while arguments and not arguments[-1]:
        arguments.pop()
    results = list(node.outputs)
    while not results[-1]:
        results.pop()
    proto = helper.make_node(node.op_type, arguments, results, domain=node.domain, **node.attributes)
    graph = helper.make_graph(
        [proto],
        "one_node",
        [helper.make_tensor_value_info(name, _code(feeds[0][name].dtype), one.shape) for name, one in fed.items()],
        [
            helper.make_tensor_value_info(name, _code(element_type(node.output_types.get(name, dtype))), None)
            for name in results
            if name
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    masks = [node.meaningful({**constants, **feed}) for feed in feeds] if node.meaningful else []
    return Case(model, feeds, node.tolerance, masks)


def _size(size: int | str, sizes: Sizes) -> int:
    return size if isinstance(size, int) else sizes[size]


def _code(dtype: np.dtype[Any]) -> onnx.TensorProto.DataType:
    return helper.np_dtype_to_tensor_dtype(dtype)
