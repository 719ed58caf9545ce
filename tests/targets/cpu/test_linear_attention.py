"""LinearAttention on the processor against the reference interpreter."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import UnsupportedError
from moec.frontend.onnx.importer import import_model
from moec.ir import interpreter

HEADER = '<ir_version: 10, opset_import: ["" : 27]> g '
GRAPHS = {
    "channels decay, heads share keys, beta of the token": (
        "(float[B,T,24] q, float[B,T,12] k, float[B,T,80] v, float[B,2,6,40] s, float[B,T,12] g, float[B,T,1] b) "
        "=> (float[B,T,160] y, float[B,2,6,40] n) { a = Abs (g) d = Neg (a) "
        "y, n = LinearAttention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, s, d, b) }"
    ),
    "heads decay, no delta rule, odd sizes": (
        "(float[B,T,15] q, float[B,T,15] k, float[B,T,21] v, float[B,3,5,7] s, float[B,T,3] g) "
        "=> (float[B,T,21] y, float[B,3,5,7] n) { a = Abs (g) d = Neg (a) y, n = LinearAttention "
        '<q_num_heads = 3, kv_num_heads = 3, scale = 1.0, update_rule = "gated"> (q, k, v, s, d) }'
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_equals_the_interpreter_token_by_token_too(name):
    proto = onnx.parser.parse_model(HEADER + GRAPHS[name])
    compiled = [moec.compile(proto, threads=threads) for threads in (1, 2)]
    for tokens in (0, 1, 30):
        inputs = inputs_of(proto, tokens)
        actual, again = (model.run(inputs) for model in compiled)
        expected = interpreter.run(import_model(proto), inputs)
        for output, array in expected.items():
            np.testing.assert_allclose(actual[output], array, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(actual[output], again[output])
    state, rows = inputs["s"], []
    for token in range(30):
        step = {key: value if key == "s" else value[:, token : token + 1] for key, value in inputs.items()}
        results = compiled[0].run({**step, "s": state})
        state = results["n"]
        rows.append(results["y"])
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), actual["y"])
    np.testing.assert_array_equal(state, actual["n"])


def inputs_of(proto: onnx.ModelProto, tokens: int) -> dict[str, np.ndarray]:
    random, sizes = np.random.default_rng(0), {"B": 2, "T": tokens}
    shapes = {
        value.name: [one.dim_value or sizes[one.dim_param] for one in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
    }
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def test_heads_that_do_not_fit_are_refused():
    """Heads of onnxruntime's operator that do not fit; those of ONNX's own operator are refused by ONNX itself."""
    text = GRAPHS["heads decay, no delta rule, odd sizes"].replace("float[B,T,3] g", "float[B,T,4] g")
    text = text.replace("LinearAttention", "com.microsoft.LinearAttention")
    with pytest.raises(UnsupportedError, match="decay is 4 wide; expected 3 or 15"):
        moec.compile(onnx.parser.parse_model(HEADER.replace("]>", ', "com.microsoft" : 1]>') + text))
