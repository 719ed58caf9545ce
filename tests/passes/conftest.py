"""``rewrite``: apply passes to a graph written as text, and check that it still computes the same."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from . import before_after


@pytest.fixture
def rewrite() -> Callable[..., ir.Model]:
    """``rewrite(text, passes, *cases, report=None)``: each case is a dict of inputs on which the outputs of the graph
    before and after the passes must agree."""
    return before_after.rewrite


@pytest.fixture
def operators() -> Callable[[ir.Model], list[str]]:
    """The operator types of a model's nodes, in order."""
    return lambda model: [node.op_type for node in model.graph]
