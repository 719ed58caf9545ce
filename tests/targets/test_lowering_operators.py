"""Every generic converter against ONNX's reference implementation, with the dynamic size T at 0, 1 and more."""

from __future__ import annotations

import re

import numpy as np
import onnx.reference
import pytest

from .side_by_side import parse_graph, results_side_by_side

SIZES = (0, 1, 3, 18)

X = "float[T,4] x"
FLOAT = "float[T,4] y"
UNARY = ("Abs", "Neg", "Relu", "Sign", "Identity", "Floor", "Ceil", "Round", "Reciprocal", "Exp", "Sin", "Cos", "Tanh",
         "Erf", "Sigmoid", "Softplus", "Softsign", "Gelu", "Elu", "LeakyRelu", "HardSigmoid")  # fmt: skip
COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
CASES: dict[str, tuple[str, str, str]] = {
    **{name: (X, FLOAT, f"y = {name}(x)") for name in UNARY},
    **{name: (f"{X}, float[4] w", FLOAT, f"y = {name}(x, w)") for name in ("Add", "Sub", "Mul", "Div", "PRelu")},
    **{name: ("int64[T,4] x, int64[4] w", "int64[T,4] y", f"y = {name}(x, w)") for name in ("Max", "Min")},
    **{name: ("int32[T,4] x, int32[4] w", "bool[T,4] y", f"y = {name}(x, w)") for name in COMPARISONS},
    **{name: ("bool[T,4] x, bool[4] w", "bool[T,4] y", f"y = {name}(x, w)") for name in ("And", "Or", "Xor")},
    "Not": ("bool[T,4] x", "bool[T,4] y", "y = Not(x)"),
    "Sqrt": (X, FLOAT, "a = Abs(x)\n y = Sqrt(a)"),
    "Log": (X, FLOAT, "a = Abs(x)\n y = Log(a)"),
    "Pow": (X, FLOAT, "e = Constant<value_float = 2.0>()\n y = Pow(x, e)"),
    "Pow by a tensor": ("float[T,4] x, float[4] w", FLOAT, "a = Abs(x)\n y = Pow(a, w)"),
    "Mod floors": ("int64[T,4] x", "int64[T,4] y", "m = Constant<value_ints = [3]>()\n y = Mod(x, m)"),
    "Mod truncates": (X, FLOAT, "m = Constant<value_float = 0.7>()\n y = Mod<fmod = 1>(x, m)"),
    "integer Div truncates": ("int64[T,4] x", "int64[T,4] y", "m = Constant<value_ints = [3]>()\n y = Div(x, m)"),
    "Where broadcasts": ("bool[T,1] c, float[T,4] x, float[4] w", FLOAT, "y = Where(c, x, w)"),
    "Clip above only": (X, FLOAT, 'm = Constant<value_float = 0.5>()\n y = Clip(x, "", m)'),
    "Cast to integer": (X, "int64[T,4] y", "y = Cast<to = 7>(x)"),
    "Cast to bool": ("int64[T,4] x", "bool[T,4] y", "y = Cast<to = 9>(x)"),
    "Cast to half": (X, "float16[T,4] y", "y = Cast<to = 10>(x)"),
    "IsNaN": (X, "bool[T,4] y", "l = Log(x)\n y = IsNaN(l)"),
    "IsInf": (X, "bool[T,4] y", "m = Constant<value_float = 1000.0>()\n l = Mul(x, m)\n r = Exp(l)\n y = IsInf(r)"),
    "Swish": (X, FLOAT, "y = Swish<alpha = 1.5>(x)"),
    "Gelu by tanh": (X, FLOAT, 'y = Gelu<approximate = "tanh">(x)'),
    "half precision": ("float16[T,4] x", "float16[T,4] y", "s = Sigmoid(x)\n y = Mul(s, x)"),
    "Reshape infers": (X, "float[T,2,2] y", "s = Constant<value_ints = [-1, 2, 2]>()\n y = Reshape(x, s)"),
    "Reshape keeps": (X, "float[T,2,2] y", "s = Constant<value_ints = [0, 2, 2]>()\n y = Reshape(x, s)"),
    "Flatten": ("float[T,2,3] x", "float[T,6] y", "y = Flatten(x)"),
    "Squeeze": ("float[T,1,4] x", FLOAT, "a = Constant<value_ints = [-2]>()\n y = Squeeze(x, a)"),
    "Unsqueeze": (X, "float[T,4,1] y", "a = Constant<value_ints = [-1]>()\n y = Unsqueeze(x, a)"),
    "Transpose": ("float[T,2,3] x", "float[3,T,2] y", "y = Transpose<perm = [2, 0, 1]>(x)"),
    "Expand one to T": (
        "float[1,4] x, float[T] t", FLOAT,
        "n = Shape(t)\n f = Constant<value_ints = [4]>()\n s = Concat<axis = 0>(n, f)\n y = Expand(x, s)",
    ),
    "Concat": ("float[T,4] x, float[2,4] w", "float[N,4] y", "y = Concat<axis = -2>(x, w, x)"),
    "Slice from the end": (
        X, "float[N,4] y",
        "a = Constant<value_ints = [-2]>()\n b = Constant<value_ints = [9223372036854775807]>()\n"
        " x0 = Constant<value_ints = [0]>()\n y = Slice(x, a, b, x0)",
    ),
    "Slice of as many from the end as a size says": (
        "float[T] a, float[7] x", "float[N] y",
        "n = Shape(a)\n m = Constant<value_ints = [-1]>()\n p = Mul(n, m)\n b = Add(p, m)\n"
        " e = Constant<value_ints = [7]>()\n y = Slice(x, b, e)",
    ),
    "Slice backwards": (
        X, "float[N,2] y",
        "a = Constant<value_ints = [-1, 3]>()\n b = Constant<value_ints = [-9223372036854775807, 0]>()\n"
        " d = Constant<value_ints = [0, -1]>()\n s = Constant<value_ints = [-1, -2]>()\n y = Slice(x, a, b, d, s)",
    ),
    "Slice past the end": (
        X, "float[N,4] y",
        "a = Constant<value_ints = [1]>()\n b = Constant<value_ints = [4]>()\n y = Slice(x, a, b)",
    ),
    "Split": (X, "float[T,1] y", "n = Constant<value_ints = [3, 1]>()\n a, y = Split<axis = -1>(x, n)"),
    "Range over T": (
        X, "int64[T] y",
        "s = Shape<start = 0, end = 1>(x)\n n = Squeeze(s)\n z = Constant<value_int = 0>()\n"
        " o = Constant<value_int = 1>()\n y = Range(z, n, o)",
    ),
    "Range at run time": (
        "int64[T] x", "int64[N] y",
        "k = ReduceSum<keepdims = 0>(x)\n n = Abs(k)\n z = Constant<value_int = 0>()\n"
        " o = Constant<value_int = 1>()\n y = Range(z, n, o)",
    ),
    "ConstantOfShape": (X, FLOAT, "s = Shape(x)\n y = ConstantOfShape<value = float[1] {2.5}>(s)"),
    "Size": (X, "int64 y", "y = Size(x)"),
    "Shape as a tensor": (X, "int64[2] y", "y = Shape(x)"),
    "Tile": (X, "float[N,12] y", "r = Constant<value_ints = [2, 3]>()\n y = Tile(x, r)"),
    "Gather": ("float[5,4] x, int64[T,2] i", "float[T,2,4] y", "y = Gather(x, i)"),
    "Gather a column": (X, "float[T] y", "i = Constant<value_int = -1>()\n y = Gather<axis = 1>(x, i)"),
    "Gather a list of one column": (
        X, "float[T,1] y", "i = Constant<value_ints = [-1]>()\n y = Gather<axis = 1>(x, i)",
    ),
    "Gather at an index known at run time": (
        "float[5,4] x, int64[1] i", "float[4] y", "z = Sub(i, i)\n s = Squeeze(z)\n y = Gather(x, s)",
    ),
    "GatherElements": ("float[5,4] x, int64[T,4] i", FLOAT, "y = GatherElements<axis = 0>(x, i)"),
    "GatherND": ("float[5,4] x, int64[T,1] i", FLOAT, "y = GatherND(x, i)"),
    "GatherND in batches": ("float[T,5,4] x, int64[T,2,1] i", "float[T,2,4] y", "y = GatherND<batch_dims = 1>(x, i)"),
    "ScatterND": (
        "float[5,4] x, int64[T,1] i, float[T,4] u", "float[5,4] y", 'y = ScatterND<reduction = "add">(x, i, u)',
    ),
    "ScatterElements": (
        "float[5,4] x, int64[T,4] i, float[T,4] u", "float[5,4] y",
        'y = ScatterElements<axis = 0, reduction = "max">(x, i, u)',
    ),
    "TensorScatter": (
        "float[T,7,4] x, float[T,2,4] u, int64[T] i", "float[T,7,4] y",
        "s = Abs(i)\n y = TensorScatter<axis = 1>(x, u, s)",
    ),
    "TensorScatter into appended room": (
        "float[T,5,4] x, float[T,2,4] u, int64[T] i", "float[T,7,4] y",
        "s = Abs(i)\n p = Constant<value_ints = [0, 2]>()\n a = Constant<value_ints = [1]>()\n"
        ' r = Pad(x, p, "", a)\n y = TensorScatter<axis = 1>(r, u, s)',
    ),
    "TensorScatter into room before": (
        "float[T,5,4] x, float[T,2,4] u, int64[T] i", "float[T,7,4] y",
        "s = Abs(i)\n p = Constant<value_ints = [1, 1]>()\n a = Constant<value_ints = [1]>()\n"
        ' r = Pad(x, p, "", a)\n y = TensorScatter<axis = 1>(r, u, s)',
    ),
    "TensorScatter at the start": ("float[T,7,4] x, float[T,2,4] u", "float[T,7,4] y", "y = TensorScatter(x, u)"),
    "RotaryEmbedding": (
        "float[T,2,3,8] x, float[5,4] c, float[5,4] s, int64[T,3] i", "float[T,2,3,8] y",
        "y = RotaryEmbedding(x, c, s, i)",
    ),
    "RotaryEmbedding of a part": (
        "float[2,T,12] x, float[5,2] c, float[5,2] s, int64[2,T] i", "float[2,T,12] y",
        "y = RotaryEmbedding<interleaved = 1, num_heads = 2, rotary_embedding_dim = 4>(x, c, s, i)",
    ),
    "RotaryEmbedding by given angles": (
        "float16[T,2,3,8] x, float16[T,3,4] c, float16[T,3,4] s", "float16[T,2,3,8] y", "y = RotaryEmbedding(x, c, s)"
    ),
    "CumSum": (X, FLOAT, "a = Constant<value_int = 0>()\n y = CumSum(x, a)"),
    "CumSum exclusive and reverse": (
        X, FLOAT, "a = Constant<value_int = -1>()\n y = CumSum<exclusive = 1, reverse = 1>(x, a)"
    ),
    "TopK values": (X, "float[T,2] y", "k = Constant<value_ints = [2]>()\n y, i = TopK(x, k)"),
    "TopK smallest of ties": (
        "int64[T,4] x", "int64[T,3] y", "k = Constant<value_ints = [3]>()\n v, y = TopK<largest = 0>(x, k)"
    ),
    "TopK along the first axis": (
        "float[4,T] x", "int64[2,T] y", "k = Constant<value_ints = [2]>()\n v, y = TopK<axis = 0>(x, k)"
    ),
    "NonZero": ("bool[T,4] x", "int64[2,N] y", "y = NonZero(x)"),
    "NonZero then Gather": (
        "bool[T] c, float[T,4] x", "float[N,4] y",
        "n = NonZero(c)\n a = Constant<value_ints = [0]>()\n i = Squeeze(n, a)\n g = Gather(x, i)\n y = Neg(g)",
    ),
    "OneHot": (
        "int64[T] i", "float[T,5] y",
        "d = Constant<value_int = 5>()\n v = Constant<value_floats = [-1.0, 1.0]>()\n y = OneHot(i, d, v)",
    ),
    "Trilu": ("float[T,4] x", FLOAT, "k = Constant<value_int = 1>()\n y = Trilu(x, k)"),
    "Pad": (X, "float[N,5] y", "p = Constant<value_ints = [2, 0, 1, 1]>()\n y = Pad(x, p)"),
    "ReduceSum": (X, "float[T,1] y", "a = Constant<value_ints = [-1]>()\n y = ReduceSum(x, a)"),
    "ReduceSum over T": (X, "float[4] y", "a = Constant<value_ints = [0]>()\n y = ReduceSum<keepdims = 0>(x, a)"),
    "ReduceMean": (X, "float[T,1] y", "a = Constant<value_ints = [1]>()\n y = ReduceMean(x, a)"),
    "ReduceMax": (X, "float[T,1] y", "a = Constant<value_ints = [1]>()\n y = ReduceMax(x, a)"),
    "ReduceL2": (X, "float[T] y", "a = Constant<value_ints = [1]>()\n y = ReduceL2<keepdims = 0>(x, a)"),
    "ReduceLogSumExp": (X, "float[T,1] y", "a = Constant<value_ints = [1]>()\n y = ReduceLogSumExp(x, a)"),
    "ArgMax takes the first": ("int64[T,4] x", "int64[T,1] y", "y = ArgMax<axis = 1>(x)"),
    "ArgMax takes the last": (
        "int64[T,4] x", "int64[T] y", "y = ArgMax<axis = 1, keepdims = 0, select_last_index = 1>(x)",
    ),
    "ArgMin": (X, "int64[T,1] y", "y = ArgMin<axis = -1>(x)"),
    "a chain of kernels": (X, FLOAT, "a = Sigmoid(x)\n b = Mul(a, x)\n c = Add(b, x)\n y = Neg(c)"),
}  # fmt: skip
"""Inputs, outputs and body in ONNX text. An int64 input named i holds indices into 5 elements, negative ones too."""


def _random(declaration: str, tokens: int, generator: np.random.Generator) -> tuple[str, np.ndarray]:
    dtype, sizes, name = re.fullmatch(r"(\w+)\[(.*)\] (\w+)", declaration).groups()
    shape = [tokens if size == "T" else int(size) for size in sizes.split(",")]
    if name == "i":
        return name, generator.integers(-5, 5, shape)
    if dtype == "bool":
        return name, generator.random(shape) < 0.5
    if dtype.startswith("int"):
        return name, generator.integers(-4, 5, shape).astype(dtype)
    return name, generator.standard_normal(shape).astype({"float": "float32"}.get(dtype, dtype))


def _feeds(inputs: str, tokens: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(tokens)
    return dict(_random(part, tokens, generator) for part in re.split(r", (?=[a-z])", inputs))


@pytest.fixture(scope="module")
def results() -> dict[int, dict[str, np.ndarray]]:
    """The output ``y`` of every case for each of SIZES, from one program of all cases."""
    return results_side_by_side(CASES, SIZES, _feeds, passes="O0")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case, results):
    reference = onnx.reference.ReferenceEvaluator(parse_graph(*CASES[case]))
    for tokens in SIZES:
        try:
            (expected,) = reference.run(None, _feeds(CASES[case][0], tokens))
        except (ValueError, IndexError, TypeError):
            assert tokens == 0, f"{case}: the reference fails for {tokens} tokens"
            expected = None  # The reference cannot do empty tensors here; moec must not fail.
        result = results[tokens][case]
        if expected is None:
            assert result.size == 0
            continue
        assert result.shape == np.shape(expected), f"{tokens} tokens"
        assert result.dtype == expected.dtype, f"{tokens} tokens"
        tolerance = 2e-3 if result.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance, err_msg=f"{tokens} tokens")
