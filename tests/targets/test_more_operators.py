"""Pooling, quantisation, resizing and their like against the interpreter, with the dynamic size T at 0, 1 and more."""

from __future__ import annotations

import re

import numpy as np
import onnx.parser
import pytest

import moec
from moec.frontend.onnx.importer import import_model
from moec.ir import interpreter

from .side_by_side import HEADER, parse_graph, results_side_by_side

SIZES = (0, 1, 2, 5)
IMAGE = "float[T,3,6,7] x"
ANGLES = ("Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Atanh")
"""All of these are defined in [-1, 1]."""

CASES: dict[str, tuple[str, str, str]] = {
    **{name: ("float[T,4] x", "float[T,4] y", f"c = Tanh(x)\n y = {name}(c)") for name in ANGLES},
    "Acosh": ("float[T,4] x", "float[T,4] y", "e = Cosh(x)\n y = Acosh(e)"),
    "BitwiseNot": ("int32[T,4] x", "int32[T,4] y", "y = BitwiseNot(x)"),
    "BitShift": ("uint8[T,4] x, uint8[4] w", "uint8[T,4] y", 'y = BitShift<direction = "LEFT">(x, w)'),
    "AveragePool": (
        IMAGE, "float[T,3,N,M] y",
        "y = AveragePool<kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1], ceil_mode = 1>(x)",
    ),
    "AveragePool counts padding": (
        IMAGE, "float[T,3,N,M] y",
        "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)",
    ),
    "AveragePool over T": ("float[2,1,T] x", "float[2,1,N] y",
                           'y = AveragePool<kernel_shape = [3], strides = [2], auto_pad = "SAME_UPPER">(x)'),
    "MaxPool": (
        IMAGE, "float[T,3,N,M] y", "y = MaxPool<kernel_shape = [2, 3], dilations = [2, 1], strides = [1, 2]>(x)",
    ),
    "MaxPool without a window in the padding": (
        "float[T,1,3] x", "float[T,1,N] y",
        "y = MaxPool<kernel_shape = [2], strides = [3], pads = [0, 1], ceil_mode = 1>(x)",
    ),
    "LpPool of sums": (IMAGE, "float[T,3,N,M] y", "y = LpPool<kernel_shape = [2, 2], p = 1>(x)"),
    "LpPool": (IMAGE, "float[T,3,N,M] y", "y = LpPool<kernel_shape = [2, 2], p = 3>(x)"),
    "GlobalAveragePool": (IMAGE, "float[T,3,1,1] y", "y = GlobalAveragePool(x)"),
    "GlobalMaxPool": (IMAGE, "float[T,3,1,1] y", "y = GlobalMaxPool(x)"),
    "QuantizeLinear": (
        "float[T,4] x", "int8[T,4] y",
        "s = Constant<value_floats = [0.1, 0.02, 0.5, 0.01]>()\n z = Constant<value = int8[4] {0, 3, -5, 100}>()\n"
        " y = QuantizeLinear(x, s, z)",
    ),
    "DequantizeLinear": (
        "int8[T,4] x", "float[T,4] y",
        "s = Constant<value_float = 0.1>()\n z = Constant<value = int8 {3}>()\n y = DequantizeLinear(x, s, z)",
    ),
    "DynamicQuantizeLinear": ("float[T,4] x, float[3] w", "uint8[N] y",
                              "f = Constant<value_ints = [-1]>()\n r = Reshape(x, f)\n c = Concat<axis = 0>(r, w)\n"
                              " y, s, z = DynamicQuantizeLinear(c)"),
    "MatMulInteger": ("int8[2,T,4] x, int8[4,3] w", "int32[2,T,3] y", "y = MatMulInteger(x, w)"),
    "ConvInteger": (
        "uint8[T,2,5,5] x, uint8[3,2,3,3] w", "int32[T,3,5,5] y",
        "z = Constant<value = uint8 {3}>()\n y = ConvInteger<pads = [1, 1, 1, 1]>(x, w, z)",
    ),
    "BatchNormalization": (
        "float[T,3,2] x, float[3] s, float[3] b, float[3] m, float[3] u", "float[T,3,2] y",
        "v = Abs(u)\n y = BatchNormalization<epsilon = 0.01>(x, s, b, m, v)",
    ),
    "InstanceNormalization": ("float[T,3,5] x, float[3] s, float[3] b", "float[T,3,5] y",
                              "y = InstanceNormalization(x, s, b)"),
    "LpNormalization": ("float[T,4] x", "float[T,4] y", "y = LpNormalization<axis = 1, p = 1>(x)"),
    "LayerNormalization of a width that fills no vectors": (
        "float[T,37] x, float[37] w", "float[T,37] y", "y = LayerNormalization(x, w)",
    ),
    "Softmax of a width that fills no vectors": ("float[T,37] x", "float[T,37] y", "y = Softmax(x)"),
    "LRN": ("float[T,5,2,1] x", "float[T,5,2,1] y", "y = LRN<size = 3, alpha = 0.1>(x)"),
    "Hardmax": ("float[T,4] x", "float[T,4] y", "y = Hardmax<axis = 1>(x)"),
    "Resize by scales": (
        "float[T,1,3,4] x", "float[T,1,N,M] y",
        's = Constant<value_floats = [1.0, 1.0, 1.5, 0.6]>()\n y = Resize<mode = "linear">(x, "", s)',
    ),
    "Resize to sizes": (
        "float[2,T] x", "float[2,7] y",
        's = Constant<value_ints = [7]>()\n'
        ' y = Resize<axes = [1], coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, "", "", s)',
    ),
    "Resize of corners by scales": (
        "float[T,1,3,4] x", "float[T,1,N,M] y",
        "s = Constant<value_floats = [1.0, 1.0, 1.5, 0.6]>()\n"
        ' y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, "", s)',
    ),
    "Resize of corners to one row": (
        "float[T,1,3,4] x", "float[T,1,1,3] y",
        "n = Constant<value_ints = [1, 3]>()\n"
        ' y = Resize<mode = "linear", axes = [2, 3], coordinate_transformation_mode = "align_corners">(x, "", "", n)',
    ),
    "Resize of a part to one row": (
        "float[T,1,3,4] x", "float[T,1,1,3] y",
        "r = Constant<value_floats = [0.1, 0.2, 0.7, 0.9]>()\n n = Constant<value_ints = [1, 3]>()\n"
        ' y = Resize<mode = "linear", axes = [2, 3],'
        ' coordinate_transformation_mode = "tf_crop_and_resize">(x, r, "", n)',
    ),
    "ConvTranspose": (
        "float[T,2,3,3] x, float[2,3,3,3] w, float[3] b", "float[T,3,N,M] y",
        "y = ConvTranspose<strides = [2, 1], pads = [1, 0, 1, 1]>(x, w, b)",
    ),
    "GridSample": ("float[T,2,3,4] x, float[T,5,2,2] g", "float[T,2,5,2] y", 'y = GridSample<mode = "linear">(x, g)'),
    "Compress": ("bool[4] c, float[T,4] x", "float[T,N] y", "y = Compress<axis = 1>(x, c)"),
    "EyeLike": ("float[T,4] x", "float[T,4] y", "y = EyeLike<k = 1>(x)"),
    "ReverseSequence": (
        "float[3,T] x", "float[3,T] y",
        "n = Shape<start = 1>(x)\n l = ConstantOfShape<value = int64[1] {2}>(n)\n"
        " y = ReverseSequence<time_axis = 0, batch_axis = 1>(x, l)",
    ),
    "ReduceMean over axes known at run time": (
        "float[T,3,4] x, int64[1] a", "float[N,M] y", "z = Sub(a, a)\n y = ReduceMean<keepdims = 0>(x, z)",
    ),
    "ReduceMax keeps axes known at run time": (
        "float[2,3,T] x, int64[2] a", "float[N,M,K] y",
        "z = Mul(a, a)\n o = Constant<value_ints = [0, 1]>()\n s = Sub(z, z)\n b = Add(s, o)\n y = ReduceMax(x, b)",
    ),
    "CumSum along an axis known at run time": (
        "float[T,3] x, int64[1] a", "float[T,3] y", "z = Sub(a, a)\n r = Squeeze(z)\n y = CumSum(x, r)",
    ),
}  # fmt: skip
"""Inputs, outputs and body in ONNX text."""


def _random(declaration: str, tokens: int, generator: np.random.Generator) -> tuple[str, np.ndarray]:
    dtype, sizes, name = re.fullmatch(r"(\w+)\[(.*)\] (\w+)", declaration).groups()
    shape = [tokens if size == "T" else int(size) for size in sizes.split(",")]
    if dtype == "bool":
        return name, generator.random(shape) < 0.5
    if "int" in dtype:
        return name, generator.integers(0 if dtype[0] == "u" else -9, 9, shape).astype(dtype)
    return name, generator.standard_normal(shape).astype({"float": "float32"}.get(dtype, dtype))


def _feeds(inputs: str, tokens: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(tokens)
    return dict(_random(part, tokens, generator) for part in re.split(r", (?=[a-z])", inputs))


@pytest.fixture(scope="module")
def results() -> dict[int, dict[str, np.ndarray]]:
    """The output ``y`` of every case for each of SIZES, from one program of all cases."""
    return results_side_by_side(CASES, SIZES, _feeds)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case, results):
    reference = import_model(parse_graph(*CASES[case]))
    for tokens in SIZES:
        result = results[tokens][case]
        try:
            expected = interpreter.run(reference, _feeds(CASES[case][0], tokens))["y"]
        except interpreter.EvaluationError:
            assert tokens == 0, f"{case}: the reference fails for {tokens}"
            continue
        assert result.shape == expected.shape and result.dtype == expected.dtype, f"T = {tokens}"
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5, err_msg=f"T = {tokens}")


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_a_shift_to_the_right_by_all_bits_or_more_leaves_the_sign(dtype):
    text = f'({dtype}[N] x, {dtype}[N] by) => ({dtype}[N] y) {{ y = BitShift<direction = "RIGHT">(x, by) }}'
    model = moec.compile(onnx.parser.parse_model(HEADER.replace("24", "28") + f"agraph {text}"))
    x, by = (one.ravel() for one in np.meshgrid([0, 1, 2**31 - 1, -1, -(2**31)], [0, 1, 31, 32, 70]))
    x = x.astype(np.int32).view(dtype)
    expected = [int(number) >> int(count) for number, count in zip(x, by, strict=True)]
    np.testing.assert_array_equal(model.run({"x": x, "by": by.astype(dtype)})["y"], np.array(expected, dtype))


def test_a_place_between_two_doubles_is_a_double():
    text = "(double[1,1,1,2] x, double[1,1,N,2] g) => (double[1,1,1,N] y) { y = GridSample<align_corners = 1>(x, g) }"
    places = np.linspace(-1, 1, 8)
    grid = np.stack([places, np.zeros(8)], axis=-1).reshape(1, 1, 8, 2)
    y = moec.compile(onnx.parser.parse_model(f"{HEADER}agraph {text}")).run(
        {"x": np.array([[[[0.0, 1.0]]]]), "g": grid}
    )
    np.testing.assert_allclose(y["y"].ravel(), (places + 1) / 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("operator", ["RMSNormalization (x, {w})", "LayerNormalization (x, {w}, b)"])
def test_scales_of_more_axes_than_are_normalised(operator: str):
    """Groups of channels have scales of their own, which onnxruntime takes as well."""
    import onnxruntime

    shapes = {"w": (4,), "w3": (3, 4), "w13": (1, 3, 4), "w1": (1, 4)}
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    outputs = ", ".join(f"float[T,3,4] y_{name}" for name in shapes)
    body = " ".join(f"y_{name} = {operator.format(w=name)}" for name in shapes)
    text = f"(float[T,3,4] x, float[4] b, {declared}) => ({outputs}) {{ {body} }}"
    model, random = onnx.parser.parse_model(f"{HEADER}agraph {text}"), np.random.default_rng(0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    compiled = moec.compile(model, threads=1)
    scales = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for tokens in (0, 1, 5):
        feeds = {"x": random.normal(size=(tokens, 3, 4)).astype(np.float32), **scales}
        feeds["b"] = random.normal(size=4).astype(np.float32)
        expected = dict(zip([f"y_{name}" for name in shapes], session.run(None, feeds), strict=True))
        for name, result in compiled.run(feeds).items():
            np.testing.assert_allclose(result, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "(float[T,4] x, float[4] w, float[4,1] b) => (float[T,4] y) { y = LayerNormalization(x, w, b) }",
            "no more axes",
        ),
        ("(float[T,4] x, float[2,1,4] w) => (float[T,4] y) { y = RMSNormalization(x, w) }", "no more axes"),
        ("(float[T,4] x, int64[2] a, int64[1] b) => (float[N,M] y) { y = Slice(x, a, b) }", "expected as many of each"),
        (
            '(float[1,1,2,T] x, float[1] s) => (float[A,B,N,M] y) { y = Resize(x, "", s) }',
            r"'s' has the shape \[1\]; expected \[4\]",
        ),
        ("(float[T,3,4] x, int64[1,1] a) => (float[N,M,K] y) { y = ReduceProd(x, a) }", "expected a list"),
        (
            "(float[2,4,24] q, float[2,6,30] k, float[2,6,30] v) => (float[2,4,30] y) "
            "{ y = Attention<q_num_heads = 3, kv_num_heads = 3>(q, k, v) }",
            "the size of a head of query and key is 8 and 10; expected the same",
        ),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(text: str, reason: str):
    with pytest.raises(moec.MoecError, match=rf"node 'y' .*{reason}"):
        moec.compile(onnx.parser.parse_model(f"{HEADER}agraph {text}"))
