"""ONNX's own tests of operators: models of one node mostly, with inputs and expected outputs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterable
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
        return _by_name(loader.load_model_tests(kind="node"))


def modules() -> list[str]:
    """The modules of onnx that make the cases, most of them those of one operator."""
    from onnx.backend.test.case import node

    return sorted(module.name for module in pkgutil.iter_modules(node.__path__) if not module.ispkg)


def cases_of(module: str) -> dict[str, Case]:
    """By name, the cases that one module makes, if nothing has imported it before."""
    from onnx.backend.test.case import node

    built: list[Any] = vars(node)["_NodeTestCases"]
    before = len(built)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        importlib.import_module(f"{node.__name__}.{module}")
    return _by_name(built[before:])


def _by_name(cases: Iterable[Any]) -> dict[str, Case]:
    tests = {test.name: test for test in cases}
    return {name: _case(tests[name], tests) for name in sorted(tests)}


def _case(test: Any, tests: dict[str, Any]) -> Case:
    (data,) = test.data_sets
    whole = tests.get(re.sub(r"_expanded.*", "", test.name), test)
    node = whole.model.graph.node[-1]
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    inputs, outputs = ([_array(value) for value in values] for values in data)
    return Case(test.name, operator, test.model.SerializeToString(), inputs, outputs, test.rtol, test.atol)


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
