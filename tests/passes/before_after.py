"""Checks of passes on text: the IR before and the IR after.

A graph is written ``(inputs) => (outputs) <constants> { nodes }``. A constant without numbers, such as
``float[4,6,5] up``, is a weight: it gets random numbers before the passes, and only its type and shape are compared
after them. Types of computed values are compared if the text after declares any.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from moec.ir import interpreter
from moec.ir.text import print_model
from moec.passes import pipeline
from moec.passes.framework.base import Remark, Report

HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "moec" : 1]>\ngraph '
_HASH = re.compile(r' = \["location": "sha256:\w+"\]')
_ARROW = re.compile(r"\s*(?:(?P<passes>\S+) )?->")
Array = np.ndarray[Any, Any]


class Example(NamedTuple):
    """``passes`` turn ``before`` into ``after``; None stands for the pass whose documentation holds the example."""

    before: str
    passes: str | None
    after: str


def model_of(text: str) -> ir.Model:
    """Parse a graph, without unused constants; weights of float32 and int8 get random numbers, others zeros."""
    proto = onnx.parser.parse_model(HEADER + text)
    computed = {name for node in proto.graph.node for name in node.output}
    random = np.random.default_rng(0)
    for value in proto.graph.value_info:
        if value.name not in computed:
            proto.graph.initializer.append(_weight(value, random))
    model = ir.from_proto(proto)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    return model


def _weight(value: onnx.ValueInfoProto, random: np.random.Generator) -> onnx.TensorProto:
    dtype = ir.DataType(value.type.tensor_type.elem_type)
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    if dtype == ir.DataType.FLOAT:
        data = random.normal(size=shape).astype(np.float32).tobytes()
    elif dtype == ir.DataType.INT8:
        data = random.integers(-127, 128, shape, np.int8).tobytes()
    else:
        data = bytes(-(-math.prod(shape) * dtype.bitwidth // 8))
    return onnx.TensorProto(name=value.name, data_type=dtype, dims=shape, raw_data=data)


def shown(model: ir.Model, *, types: bool = False) -> list[str]:
    """The lines of a model's text, without its header and the numbers of weights, with constants in alphabetical
    order."""
    text = _HASH.sub("", print_model(model, types=types, node_names=False))
    lines = [line.strip().rstrip(",") for line in text[text.index(" (") :].splitlines()]
    if "<" in lines:
        declared = slice(lines.index("<") + 1, lines.index(">"))
        lines[declared] = sorted(lines[declared])
    return lines


def rewrite(text: str, passes: str, *cases: Mapping[str, Array], report: Report | None = None) -> ir.Model:
    """Run ``passes`` on a graph; assert that the result computes the same on ``cases``, except for rounding."""
    model = model_of(text)
    expected = [interpreter.run(model, case) for case in cases]
    pipeline.run(model, pipeline.parse(passes), report, verify_each=True)
    for case, wanted in zip(cases, expected, strict=True):
        actual = interpreter.run(model, case)
        assert actual.keys() == wanted.keys()
        for name, value in wanted.items():
            assert actual[name].shape == value.shape
            np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6)
    return model


def check(passes: str, before: str, after: str | None = None, *cases: Mapping[str, Array]) -> list[Remark]:
    """Assert that ``passes`` turn ``before`` into ``after``, or leave it unchanged. Unless a pass is lossy, assert that
    the result computes the same on ``cases``, or else on random numbers. Returns the remarks."""
    after, report = before if after is None else after, Report()
    if any(one.exactness == "lossy" for one in pipeline.parse(passes)):
        assert not cases
    elif not cases:
        cases = (_random_inputs(model_of(before)),)
    assert_shown(rewrite(before, passes, *cases, report=report), after)
    return report.remarks


def assert_shown(model: ir.Model, text: str) -> None:
    """Assert that the model has this text."""
    expected = model_of(text)
    types = any(value.type for node in expected.graph for value in node.outputs if not value.is_graph_output())
    actual, expected_result = shown(model, types=types), shown(expected, types=types)
    assert actual == expected_result, "\n" + "\n".join(difflib.ndiff(expected_result, actual))


def _random_inputs(model: ir.Model) -> dict[str, Array]:
    """Random inputs with 3 for each size that is not fixed; truth values and small integers for inputs that are not
    floats."""
    random = np.random.default_rng(1)

    def numbers(value: ir.Value) -> Array:
        assert value.shape is not None and value.dtype is not None
        shape = [size if isinstance(size, int) else 3 for size in value.shape]
        return (2 * random.normal(size=shape)).astype(value.dtype.numpy())

    return {value.name or "": numbers(value) for value in model.graph.inputs}


def examples(documentation: str) -> Iterator[Example]:
    """The examples of a pass: literal blocks of its documentation with a line ``->`` or ``passes ->``."""
    for block in re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", inspect.cleandoc(documentation) + "\n"):
        lines = block.splitlines()
        for place, arrow in enumerate(map(_ARROW.fullmatch, lines)):
            if arrow:
                yield Example("\n".join(lines[:place]), arrow["passes"], "\n".join(lines[place + 1 :]))
