"""Dense operators on the CUDA target, emulated, against the reference interpreter."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter

from ...products import thinned

ATTENTION = "q_num_heads = 4, kv_num_heads = 2"
GRAPHS = {
    "matmul": "(float[B,T,5] x, float[B,5,6] w) => (float[B,T,6] y) { y = MatMul (x, w) }",
    "gemm": "(float[T,5] x, float[6,5] w, float[6] b) => (float[T,6] y) "
    "{ y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b) }",
    "einsum": '(float[T,5] x, float[3,5,6] w) => (float[3,T,6] y) { y = Einsum <equation = "td,edf->etf"> (x, w) }',
    "softmax": "(float[T,5,3] x) => (float[T,5,3] y) { y = Softmax <axis = 1> (x) }",
    "layer_norm": "(float[T,5] x, float[5] s, float[5] b) => (float[T,5] y) { y = LayerNormalization (x, s, b) }",
    "layer_norm_without_bias": "(float[T,5] x, float[5] s) => (float[T,5] y) { y = LayerNormalization (x, s) }",
    "rms_norm": "(float[T,5] x, float[5] s) => (float[T,5] y) { y = RMSNormalization (x, s) }",
    "convolution": "(float[T,4,9] x, float[6,2,3] w, float[6] b) => (float[T,6,N] y) "
    "{ y = Conv <group = 2, pads = [2, 0], strides = [2]> (x, w, b) }",
    "grouped_convolution": "(float[1,48,S] x, float[48,8,2] w, float[48] b) => (float[1,48,N] y) "
    "{ y = Conv <group = 6> (x, w, b) }",
    "attention": f"(float[2,T,32] q, float[2,T,16] k, float[2,T,24] v) => (float[2,T,48] y) "
    f"{{ y = Attention <{ATTENTION}, is_causal = 1, softcap = 3.0> (q, k, v) }}",
    "masked_attention": f"(float[2,T,32] q, float[2,T,16] k, float[2,T,24] v, float[T,T] m) => (float[2,T,48] y) "
    f"{{ y = Attention <{ATTENTION}> (q, k, v, m) }}",
    "topk": "(float[T,9] x, int64[1] k) => (float[T,K] y, int64[T,K] i) { y, i = TopK (x, k) }",
    "linear_attention": "(float[B,T,16] q, float[B,T,8] k, float[B,T,10] v, float[B,2,4,5] s, float[B,T,2] g, "
    "float[B,T,1] b) => (float[B,T,20] y, float[B,2,4,5] n) { a = Abs (g) d = Neg (a) "
    "y, n = LinearAttention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, s, d, b) }",
    "running_sum": "(float[T,5] x) => (float[T,5] y) { a = Constant <value = int64 {0}> () y = CumSum (x, a) }",
}


def _model(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g {text}')
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def _inputs(model: ir.Model, T: int) -> dict[str, np.ndarray]:
    generator, sizes = np.random.default_rng(0), {"T": T, "B": 2, "S": T + 2}
    values = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else sizes[size.value] for size in value.shape]
        values[value.name] = generator.standard_normal(shape, dtype=np.float32)
        if value.name == "k" and value.dtype == ir.DataType.INT64:
            values["k"] = np.array([3], np.int64)
    return values


@thinned("name", GRAPHS, 4)
def test_equals_the_interpreter(emulated, name):
    model = _model(GRAPHS[name])
    run = emulated(model)
    # The reference of Attention fails for zero tokens.
    for T in (1, 7, 40) if "Attention" in GRAPHS[name] else (1, 7, 0, 40):
        inputs = _inputs(model, T)
        expected = interpreter.run(model, inputs, dtype=np.float64)
        for output, actual in run(inputs).items():
            assert actual.shape == expected[output].shape
            np.testing.assert_allclose(actual, expected[output], rtol=1e-4, atol=1e-4, err_msg=f"{output}, T = {T}")


@pytest.mark.nightly
def test_half_precision_is_summed_in_float32(emulated):
    run = emulated(_model("(float16[T,512] x, float16[512,4] w) => (float16[T,4] y) { y = MatMul (x, w) }"))
    x, w = np.full((3, 512), 8, np.float16), np.full((512, 4), 0.25, np.float16)
    np.testing.assert_array_equal(run({"x": x, "w": w})["y"], np.full((3, 4), 1024, np.float16))


def test_refuses_a_convolution_in_space(program_of):
    text = "(float[T,2,4,4,4] x, float[3,2,2,2,2] w) => (float[T,3,3,3,3] y) { y = Conv (x, w) }"
    with pytest.raises(UnsupportedError, match=r"\(Conv\): expected one or two spatial axes"):
        program_of(_model(text))


def test_attention_without_tokens(emulated):
    run = emulated(_model(GRAPHS["attention"]))
    sizes = {"q": 32, "k": 16, "v": 24}
    assert run({name: np.zeros((2, 0, size), np.float32) for name, size in sizes.items()})["y"].shape == (2, 0, 48)


BIASED = """(float[T,5] x{inputs}) => (float[T,5] y{outputs})
    <float[5] s = {{0.3, -1.7, 2.1, 0.9, 1.1}}, float[5] b = {{0.7, 0.1, -3.3, 1.3, 0.2}}> {{
    n = RMSNormalization (x, s) {body} }}"""


@pytest.mark.parametrize("body", ["y = Add (n, b)", "y = Add (b, n)"])
def test_a_bias_is_added_by_the_kernel_of_an_rms_norm_to_the_same_bits(emulated, program_of, body):
    together = _model(BIASED.format(inputs="", outputs="", body=body))
    apart = _model(BIASED.format(inputs="", outputs=", float[T,5] z", body=f"{body} z = Neg (n)"))
    assert [kernel.name for kernel in program_of(together).kernels] == ["rms_norm"]
    assert len(program_of(apart).kernels) > 1
    runs = [emulated(model) for model in (together, apart)]
    for T in (0, 1, 9):
        values = {"x": np.random.default_rng(T).standard_normal((T, 5), dtype=np.float32)}
        np.testing.assert_array_equal(*(run(values)["y"] for run in runs))


@pytest.mark.parametrize(
    ("inputs", "body"), [(", float[5] c", "y = Add (n, c)"), ("", "y = Add (n, x)"), ("", "y = Add (n, n)")]
)
def test_other_sums_behind_an_rms_norm_stay_apart(program_of, inputs, body):
    names = [kernel.name for kernel in program_of(_model(BIASED.format(inputs=inputs, outputs="", body=body))).kernels]
    assert len(names) == 2 and names[0] == "rms_norm"
