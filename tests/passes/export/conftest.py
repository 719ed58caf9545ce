"""A pass' result, run by the reference interpreter and by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.exporting.onnx_file import finish
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..before_after import model_of

Array = np.ndarray[Any, Any]
Exported = Callable[..., tuple[ir.Model, Report]]


@pytest.fixture
def exported() -> Exported:
    """A function that writes a graph in operators of onnxruntime and ONNX, and compares onnxruntime's results with
    those of the reference interpreter on the graph, within ``tolerance`` of the largest output. ``passes`` come first,
    ``by`` are those that write."""

    def run(
        graph: str | ir.Model,
        *cases: Mapping[str, Array],
        passes: str = "",
        tolerance: float = 1e-5,
        by: str = pipeline.FOR_ONNXRUNTIME,
    ) -> tuple[ir.Model, Report]:
        model, report = model_of(graph) if isinstance(graph, str) else graph, Report()
        pipeline.run(model, pipeline.parse(f"infer-shapes,{passes}" if passes else "infer-shapes"), verify_each=True)
        references = [interpreter.run(model, case) for case in cases]
        pipeline.run(model, pipeline.parse(by), report, verify_each=True)
        finish(model)
        session = session_of(model)
        names = [output.name for output in model.graph.outputs]
        for case, expected in zip(cases, references, strict=True):
            for name, actual in zip(names, session.run(names, dict(case)), strict=True):
                value = expected[str(name)]
                assert (actual.shape, actual.dtype) == (value.shape, value.dtype)
                largest = float(np.abs(value.astype(np.float64)).max(initial=0))
                np.testing.assert_allclose(actual, value, rtol=0, atol=tolerance * max(largest, 1e-3))
        return model, report

    return run


def session_of(model: ir.Model) -> Any:
    """Open a model in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    serialized = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


@pytest.fixture
def normal() -> Callable[..., Array]:
    """Draw normal numbers in float32 of a shape."""
    random = np.random.default_rng(7)
    return lambda *shape: random.normal(size=shape).astype(np.float32)
