"""onnxruntime's own operators: the interpreter against onnxruntime itself."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir.interpreter import run

E, D, F = 4, 8, 6
T = 5


def against_onnxruntime(node: str, inputs: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    import onnxruntime

    def signature(array: np.ndarray) -> str:
        return f"float[{','.join(str(size) for size in array.shape)}]"

    arguments = ", ".join(f"{signature(array)} {name}" for name, array in inputs.items())
    header = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{header}\ng ({arguments}) => (float[] y)\n{{\n{node}\n}}")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], inputs)
    actual = run(ir.from_proto(proto), inputs)["y"]
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
def test_moe(activation: str, normalize: int) -> None:
    inputs = {"x": normal(T, D), "r": normal(T, E), "w1": normal(E, F, D), "b1": normal(E, F)}
    inputs |= {"w2": normal(E, D, F), "b2": normal(E, D)}
    attributes = f'activation_type = "{activation}", k = 2, normalize_routing_weights = {normalize}'
    against_onnxruntime(f"y = com.microsoft.MoE <{attributes}> (x, r, w1, b1, w2, b2)", inputs, 1e-4)


@pytest.mark.parametrize("limit", ["", ", swiglu_limit = 1.0"])
@pytest.mark.parametrize("alpha, beta", [(1.0, 0.0), (1.702, 1.0)])
def test_moe_with_swiglu(alpha: float, beta: float, limit: str) -> None:
    inputs = {"x": normal(1, T, D), "r": normal(T, E), "w1": normal(E, 2 * F, D), "w2": normal(E, D, F)}
    attributes = f'activation_type = "swiglu", swiglu_fusion = 1, k = 2, activation_alpha = {alpha}{limit}'
    node = f'y = com.microsoft.MoE <{attributes}, activation_beta = {beta}> (x, r, w1, "", w2)'
    against_onnxruntime(node, inputs, 1e-4)


NODES = {
    "fused_matmul": (
        "FusedMatMul <alpha = 0.5, transA = 1, transB = 1> (a, b)",
        {"a": normal(2, 3, 4), "b": normal(2, 5, 3)},
    ),
    "fused_matmul_batches": ("FusedMatMul <transBatchA = 1> (a, b)", {"a": normal(4, 2, 3), "b": normal(2, 3, 5)}),
    "fused_matmul_both": (
        "FusedMatMul <transBatchA = 1, transA = 1, transBatchB = 1, transB = 1> (a, b)",
        {"a": normal(3, 2, 4), "b": normal(5, 2, 3)},
    ),
    "quick_gelu": ("QuickGelu <alpha = 1.5> (a)", {"a": normal(3, 4)}),
    "bias_gelu": ("BiasGelu (a, b)", {"a": normal(3, 4), "b": normal(4)}),
    "gelu": ("Gelu (a)", {"a": normal(3, 4)}),
    "fast_gelu": ("FastGelu (a, b)", {"a": normal(3, 4), "b": normal(4)}),
    "skip_layer_normalization": (
        "SkipLayerNormalization <epsilon = 0.01> (x, s, g, b, c)",
        {
            "x": normal(2, 3, 4),
            "s": normal(2, 3, 4, seed=1),
            "g": normal(4),
            **{n: normal(4, seed=ord(n)) for n in "bc"},
        },
    ),
    "skip_simplified_layer_normalization": (
        "SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, s, g)",
        {"x": normal(2, 3, 4), "s": normal(2, 3, 4, seed=1), "g": normal(4)},
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_operator(name: str) -> None:
    node, inputs = NODES[name]
    against_onnxruntime(f"y = com.microsoft.{node}", inputs)


def test_the_fourth_output_of_a_skip_normalisation_is_the_sum() -> None:
    inputs = {"x": normal(2, 3, 4), "s": normal(2, 3, 4, seed=1), "g": normal(4)}
    against_onnxruntime('n, "", "", y = com.microsoft.SkipSimplifiedLayerNormalization (x, s, g)', inputs)


@pytest.mark.parametrize("outputs", ["y, state", "convolved, y"])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("rest", ["", ", b, past"])
def test_causal_convolution(outputs: str, length: int, rest: str) -> None:
    inputs = {"x": normal(2, 3, length), "w": normal(3, 1, 3)}
    inputs |= {"b": normal(3), "past": normal(2, 3, 4)} if rest else {}
    operator = 'com.microsoft.CausalConvWithState <activation = "silu", dilation = 2>'
    against_onnxruntime(f"{outputs} = {operator} (x, w{rest})", inputs)


def test_simplified_layer_normalization() -> None:
    node = "y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (x, g)"
    against_onnxruntime(node, {"x": normal(2, 3, 4), "g": normal(4)})
