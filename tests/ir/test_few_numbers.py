"""Values that can be only a few numbers, and where each of them counts."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from moec.ir.few_numbers import MEETING, MOST_PAIRS, few_numbers
from moec.passes import pipeline

CONSTANTS = {
    "half": np.float32(0.5),
    "unit": np.float32(1),
    "table": np.array([[3, 1], [1, np.nan]], np.float32),
    "many": np.arange(MOST_PAIRS, dtype=np.float32),
    "first": np.array([0]),
    "depth": np.int64(3),
    "off_on": np.array([2, 7], np.float32),
}
BEHIND = {
    "f = Cast <to = 1> (b)\n y = Mul (f, half)": [0, 0.5],
    "c = Where (b, half, unit)\n y = Where (b, c, half)": [0.5, 1],
    "f = Cast <to = 1> (b)\n g = Sub (unit, f)\n y = Mul (f, g)": [0, 1],
    "i = ArgMax <axis = -1> (x)\n o = OneHot (i, depth, off_on)\n y = Min (o, unit)": [1],
    "i = ArgMax <axis = 0> (x)\n t = Gather (table, i)\n y = Min (t, unit)": [1],
    "f = Cast <to = 1> (b)\n y = ReduceProd (f, first)": [0, 1],
    "f = Cast <to = 1> (b)\n y = ReduceMin (f, first)": [0, 1],
    "f = Cast <to = 1> (b)\n g = Sub (unit, f)\n y = Pow (f, g)": [0, 1],
    "f = Cast <to = 1> (b)\n l = Log (f)\n e = Exp (l)\n y = Mul (e, half)": [0, 0.5],
    "f = Cast <to = 1> (b)\n t = Reshape (f, first)\n u = Concat <axis = 0> (t, t)\n y = Max (u, half)": [0.5, 1],
}
NOT_BEHIND = {
    "any number": "y = Mul (x, half)",
    "a choice of any number": "y = Where (b, x, half)",
    "too many pairs": "f = Cast <to = 1> (b)\n y = Mul (f, many)",
    "a sum of flags": "f = Cast <to = 1> (b)\n g = Add (f, f)\n y = Mul (g, half)",
    "a product of any number of numbers": "h = Where (b, half, unit)\n y = ReduceProd (h, first)",
    "no operator in which they meet": "f = Cast <to = 1> (b)\n y = Neg (f)",
}


def numbers_of_y(text: str) -> np.ndarray | None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 24]> g (float[T,3] x) => (y) {{ b = Greater (x, x)\n {text} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    arrays = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in CONSTANTS.items() if name in used]
    proto.graph.initializer.extend(arrays)
    model = ir.serde.deserialize_model(proto)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    constant = lambda value: None if value.const_value is None else value.const_value.numpy()  # noqa: E731
    (node,) = (node for node in model.graph if node.outputs[0] is model.graph.outputs[0])
    return few_numbers(model.graph, constant).get(node.outputs[0]) if node.op_type in MEETING else None


@pytest.mark.parametrize("text", BEHIND)
def test_the_numbers_that_a_result_can_be(text: str) -> None:
    actual = numbers_of_y(text)
    assert actual is not None and actual.tolist() == BEHIND[text]


@pytest.mark.parametrize("text", NOT_BEHIND.values(), ids=NOT_BEHIND.keys())
def test_what_is_no_case_of_its_own(text: str) -> None:
    assert numbers_of_y(text) is None
