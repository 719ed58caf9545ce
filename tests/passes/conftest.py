"""``rewrite``: apply passes to a graph written as text, and check that it still computes the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import interpreter
from moec.ir.text import parse_model
from moec.ir.verifier import verify
from moec.passes.framework import pipeline
from moec.passes.framework.base import Report

HEADER = '<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>\nagraph '


@pytest.fixture
def rewrite() -> Callable[..., ir.Model]:
    """``rewrite(text, passes, *cases, report=None)``: each case is a dict of inputs on which the outputs of the graph
    before and after the passes must agree."""

    def apply(text: str, passes: str, *cases: dict[str, np.ndarray], report: Report | None = None) -> ir.Model:
        model = parse_model(HEADER + text)
        before = [interpreter.run(model, case) for case in cases]
        pipeline.run(model, pipeline.parse(passes), report, verify_each=True)
        verify(model)
        for case, expected in zip(cases, before, strict=True):
            found = interpreter.run(model, case)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].shape == value.shape
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
        return model

    return apply


@pytest.fixture
def operators() -> Callable[[ir.Model], list[str]]:
    """The operator types of a model's nodes, in order."""
    return lambda model: [node.op_type for node in model.graph]
