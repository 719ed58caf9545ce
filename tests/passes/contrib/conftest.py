"""``decompose``: a graph as text, run by onnxruntime, and without ``com.microsoft`` by moec's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.frontend.onnx.importer import import_model
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report

HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\ng '


@pytest.fixture
def run_onnxruntime() -> Callable[[onnx.ModelProto, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def run(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import onnxruntime

        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in proto.graph.output]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


@pytest.fixture
def decompose(run_onnxruntime: Callable) -> Callable[..., ir.Model]:
    """``decompose(text, inputs, constants={}, tolerance=1e-5)`` asserts that the decomposed model has no contrib
    operator left and computes the same as onnxruntime, and returns it."""

    def apply(
        text: str,
        inputs: dict[str, np.ndarray],
        constants: dict[str, np.ndarray] | None = None,
        tolerance: float = 1e-5,
        expected: Callable[[str, np.ndarray], np.ndarray] = lambda _name, array: array,
    ) -> ir.Model:
        proto = onnx.parser.parse_model(HEADER + text)
        arrays = (constants or {}).items()
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays)
        model, report = import_model(proto), Report()
        pipeline.run(model, pipeline.parse("infer-shapes,decompose-contrib,infer-shapes"), report, verify_each=True)
        assert not [remark for remark in report.remarks if remark.severity != "note"]
        assert all(node.domain != "com.microsoft" for node in model.graph)
        actual = interpreter.run(model, inputs)
        for name, array in run_onnxruntime(proto, inputs).items():
            assert actual[name].shape == array.shape and actual[name].dtype == array.dtype
            scale = max(1.0, float(np.abs(expected(name, array)).max(initial=0)))
            np.testing.assert_allclose(
                expected(name, actual[name]), expected(name, array), rtol=0, atol=tolerance * scale, err_msg=name
            )
        return model

    return apply


@pytest.fixture
def normal() -> Callable[..., np.ndarray]:
    """``normal(*shape)``: float32 numbers, others on every call."""
    generator = np.random.default_rng(7)
    return lambda *shape: generator.normal(size=shape).astype(np.float32)
