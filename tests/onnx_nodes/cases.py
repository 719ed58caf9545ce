"""ONNX's own tests of operators: models of one node mostly, with inputs and expected outputs."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from typing import Any

import numpy as np
import onnx


@dataclasses.dataclass(frozen=True)
class Case:
    """``model`` is a serialised ModelProto; inputs and outputs are in the order of the graph's."""

    name: str
    operator: str
    """The operator that the test is about, also where its model holds that operator's function body instead."""
    model: bytes
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


@functools.cache
def all_cases() -> dict[str, Case]:
    """By name. onnx computes them in about 5 s."""
    from onnx.backend.test import loader

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = {case.name: case for case in loader.load_model_tests(kind="node")}
    return {name: _case(found[name], found) for name in sorted(found)}


def _case(test: Any, tests: dict[str, Any]) -> Case:
    (data,) = test.data_sets
    whole = tests.get(re.sub(r"_expanded.*", "", test.name), test)
    node = whole.model.graph.node[-1]
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    inputs, outputs = ([_array(one) for one in values] for values in data)
    return Case(test.name, operator, test.model.SerializeToString(), inputs, outputs, test.rtol, test.atol)


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
