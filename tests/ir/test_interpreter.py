"""The interpreter: whole models, cut-outs, empty tensors, float64."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir import semantics
from moec.ir.dialect import ExpertsSpec, RouteSpec, make_node
from moec.ir.interpreter import EvaluationError, Evaluator, evaluate, run
from moec.ir.weights.stacks import ExpertStack


def model_of(body: str, signature: str, constants: str = "float[1] unused") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "moec" : 1]>\ng {signature}\n<{constants}>\n'
    return ir.from_proto(onnx.parser.parse_model(f"{text}{{\n{body}\n}}"))


def test_runs_a_model_with_a_weight() -> None:
    model = model_of("z = MatMul (x, w)\n y = Relu (z)", "(float[T,2] x) => (y)", "float[2,2] w = {1,-1,1,-1}")
    outputs = run(model, {"x": np.array([[1, 2]], np.float32)})
    np.testing.assert_array_equal(outputs["y"], [[3, 0]])
    assert outputs["y"].dtype == np.float32


@pytest.mark.parametrize("names", [[], ["x", "more"], ["other"]])
def test_inputs_must_be_those_of_the_model(names: list[str]) -> None:
    model = model_of("y = Relu (x)", "(float[T,2] x) => (y)")
    with pytest.raises(ValueError, match=r"takes inputs \['x'\]"):
        run(model, {name: np.zeros((1, 2), np.float32) for name in names})


def test_float64_reaches_weights_constants_and_casts() -> None:
    body = """
        third = Constant <value_float = 0.33333334> ()
        c = Constant <value: tensor = float {0.1}> ()
        n = Shape (x)
        zeros = ConstantOfShape (n)
        ones = ConstantOfShape <value: tensor = float[1] {1.0}> (n)
        i = Cast <to = 7> (x)
        f = Cast <to = 1> (i)
        h = Cast <to = 10> (x)
        g = Cast <to = 1> (h)
        a = Add (f, third)
        b = Add (a, c)
        e = Add (b, zeros)
        k = Mul (e, ones)
        l = Add (k, g)
        y = MatMul (l, w)"""
    model = model_of(body, "(float[T,1] x) => (y, h)", "float[1,1] w = {0.7}")
    x = np.array([[2.125]], np.float32)
    outputs = run(model, {"x": x}, dtype=np.float64)
    third, tenth, w = (float(np.float32(value)) for value in (1 / 3, 0.1, 0.7))
    assert outputs["y"].dtype == outputs["h"].dtype == np.float64
    np.testing.assert_allclose(outputs["y"], [[(2 + third + tenth + 2.125) * w]], rtol=1e-15)
    assert run(model, {"x": x})["h"].dtype == np.float16


def test_float64_leaves_weights_the_numbers_of_their_type() -> None:
    """A weight is what its type holds; data is computed in float64, by the same operator, too."""
    body = "w = DequantizeLinear (q, s)\n y = MatMul (one, w)\n z = DequantizeLinear (x, s)"
    constants = "int8[1,1] q = {7}, float s = {0.1}, float[1,1] one = {1}"
    model = model_of(body, "(int8[1,1] x) => (y, z)", constants)
    outputs = run(model, {"x": np.array([[7]], np.int8)}, dtype=np.float64)
    assert outputs["y"].item() == float(np.float32(0.1) * np.float32(7))
    assert outputs["z"].item() == float(np.float32(0.1)) * 7 != outputs["y"].item()


def test_float64_reaches_into_branches() -> None:
    body = """
        y = If <then_branch = a () => (float[] p) { c = Constant <value: tensor = float {0.1}> () p = Add (x, c) },
                else_branch = b () => (float[] q) <float w = {0.2}> { q = Add (x, w) }> (flag)"""
    model = model_of(body, "(float[T] x, bool flag) => (y)")
    for flag, added in ((True, 0.1), (False, 0.2)):
        outputs = run(model, {"x": np.zeros(1, np.float32), "flag": np.array(flag)}, dtype=np.float64)
        assert outputs["y"].dtype == np.float64
        assert outputs["y"][0] == float(np.float32(added))


def test_only_float64_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match="dtype is float16; expected float64"):
        run(model_of("y = Relu (x)", "(float[T] x) => (y)"), {"x": np.zeros(1, np.float32)}, dtype=np.float16)


LOOP_BODY = """
        mask = Equal (ids, expert)
        where = NonZero (mask)
        token, slot = Split <axis = 0, num_outputs = 2> (where)
        rows = Squeeze (token, zero)
        taken = Gather (x, rows)
        hidden = MatMul (taken, w)
        gelu = Gelu (hidden)
        pairs = Transpose <perm = [1, 0]> (where)
        mix = GatherND (weights, pairs)
        column = Unsqueeze (mix, one)
        scaled = Mul (gelu, column)
        at = Transpose <perm = [1, 0]> (token)
        y = ScatterND <reduction = "add"> (acc, at, scaled)
        shape = Shape (scaled)
        index = Expand (at, shape)
        blank = ConstantOfShape (xshape)
        scattered = ScatterElements <axis = 0> (blank, index, scaled)
        z = Add (acc, scattered)"""
LOOP_SIGNATURE = (
    "(float[T,4] x, float[T,2] weights, int64[T,2] ids, float[T,4] acc, int64 expert, int64[2] xshape) => (y, z)"
)


def loop_feeds(tokens: int, ids: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "x": generator.normal(size=(tokens, 4)).astype(np.float32),
        "weights": generator.normal(size=(tokens, 2)).astype(np.float32),
        "ids": ids,
        "acc": generator.normal(size=(tokens, 4)).astype(np.float32),
        "expert": np.array(1),
        "xshape": np.array([tokens, 4]),
    }


@pytest.mark.parametrize("dtype", [None, np.float64])
@pytest.mark.parametrize(
    "ids",
    [
        np.zeros((3, 2), np.int64),
        np.zeros((0, 2), np.int64),
        np.array([[1, 0], [2, 1], [0, 2]]),
        np.array([[1, 0]] * 5),
    ],
    ids=["no token for the expert", "no token at all", "some", "all"],
)
def test_one_step_of_an_expert_loop(ids: np.ndarray, dtype: type | None) -> None:
    weight = ", ".join(str(0.1 * i - 0.5) for i in range(16))
    constants = f"float[4,4] w = {{{weight}}}, int64[1] zero = {{0}}, int64[1] one = {{1}}"
    feeds = loop_feeds(len(ids), ids)
    outputs = run(model_of(LOOP_BODY, LOOP_SIGNATURE, constants), feeds, dtype=dtype)
    w = np.array([0.1 * i - 0.5 for i in range(16)]).reshape(4, 4)
    expected = feeds["acc"].astype(np.float64)
    for token, slot in np.argwhere(ids == 1):
        expected[token] += feeds["weights"][token, slot] * semantics.gelu(feeds["x"][token].astype(np.float64) @ w)
    for result in outputs.values():
        assert result.shape == (len(ids), 4) and result.dtype == (dtype or np.float32)
        np.testing.assert_allclose(result, expected, atol=1e-6)


EMPTY_CASES = {
    "TopK": ("v, y = TopK (x, k)", "int64[1] k = {2}", (0, 2)),
    "Softmax": ("y = Softmax (x)", "", (0, 4)),
    "Split": ("y, b = Split <axis = 0> (x, s)", "int64[2] s = {0,0}", (0, 4)),
    "ReduceSum": ("y = ReduceSum <keepdims = 0> (x, a)", "int64[1] a = {1}", (0,)),
    "ReduceMax": ("y = ReduceMax <keepdims = 0> (x, a)", "int64[1] a = {1}", (0,)),
    "ReduceMean": ("y = ReduceMean (x, a)", "int64[1] a = {1}", (0, 1)),
    "ArgMax": ("y = ArgMax <axis = 1> (x)", "", (0, 1)),
    "Reshape": ("y = Reshape (x, s)", "int64[2] s = {-1,2}", (0, 2)),
    "Expand": ("n = Shape (x)\n y = Expand (x, n)", "", (0, 4)),
    "Concat": ("y = Concat <axis = 1> (x, x)", "", (0, 8)),
    "CumSum": ("y = CumSum <exclusive = 1> (x, a)", "int64 a = {0}", (0, 4)),
    "OneHot": ("i = Cast <to = 7> (x)\n y = OneHot (i, d, v)", "int64 d = {3}, float[2] v = {0,1}", (0, 4, 3)),
    "Einsum": ('y = Einsum <equation = "td,df->tf"> (x, w)', "float[4,1] w = {1,2,3,4}", (0, 1)),
    "Gemm": ("y = Gemm (x, w)", "float[4,1] w = {1,2,3,4}", (0, 1)),
    "GatherElements": ("i = Cast <to = 7> (x)\n y = GatherElements <axis = 1> (x, i)", "", (0, 4)),
    "NonZero": ("y = NonZero (x)", "", (2, 0)),
    "Trilu": ("y = Trilu (x)", "", (0, 4)),
    "LayerNormalization": ("y = LayerNormalization (x, w)", "float[4] w = {1,2,3,4}", (0, 4)),
}


@pytest.mark.parametrize("operator", EMPTY_CASES)
def test_operators_on_no_tokens(operator: str) -> None:
    body, constants, shape = EMPTY_CASES[operator]
    outputs = run(
        model_of(body, "(float[T,4] x) => (y)", constants or "float[1] unused"), {"x": np.zeros((0, 4), np.float32)}
    )
    assert outputs["y"].shape == shape


def test_scatter_and_gather_agree_with_their_definitions() -> None:
    """Against onnx.reference's own loops, on sizes where those work."""
    from onnx.reference.ops.op_gathernd import _gather_nd_impl
    from onnx.reference.ops.op_scatter_elements import scatter_elements
    from onnx.reference.ops.op_scatternd import _scatter_nd_impl

    from moec.ir import operators

    generator = np.random.default_rng(0)
    data, updates = generator.normal(size=(4, 3, 5)), generator.normal(size=(2, 3, 4))
    for reduction in ("none", "add", "mul", "max", "min"):
        indices = generator.integers(-5, 5, size=(2, 3, 4))
        actual = operators.scatter_elements(data, indices, updates, axis=2, reduction=reduction)
        np.testing.assert_array_equal(actual, scatter_elements(data, indices, updates, 2, reduction))
        tuples = generator.integers(0, 3, size=(2, 4, 2))
        slices = generator.normal(size=(2, 4, 5))
        actual = operators.scatter_nd(data, tuples, slices, reduction=reduction)
        np.testing.assert_array_equal(actual, _scatter_nd_impl(data, tuples, slices, reduction))
    for batch_dims, shape in ((0, (2, 4, 2)), (1, (4, 2, 1)), (1, (4, 2)), (2, (4, 3, 1)), (0, (7, 3))):
        indices = generator.integers(0, 3, size=shape)
        actual = operators.gather_nd(data, indices, batch_dims=batch_dims)
        np.testing.assert_array_equal(actual, _gather_nd_impl(data, indices, batch_dims)[0])


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_top_k_gives_equal_entries_in_the_order_of_their_ids(largest: int, axis: int) -> None:
    from moec.ir.operators import top_k

    x = np.random.default_rng(0).integers(0, 3, size=(6, 7)).astype(np.float32)
    values, ids = top_k(x, np.array([4]), axis=axis, largest=largest)
    np.testing.assert_array_equal(np.take_along_axis(x, ids, axis), values)
    for line, actual in zip(np.moveaxis(x, axis, -1), np.moveaxis(ids, axis, -1), strict=True):
        order = sorted(range(len(line)), key=lambda index: ((-line[index] if largest else line[index]), index))
        assert actual.tolist() == order[:4]


@pytest.mark.parametrize("dtype", ["float16", "float", "double"])
def test_log_softmax_of_numbers_far_apart(dtype: str) -> None:
    model = model_of("y = LogSoftmax (x)", f"({dtype}[N,2] x) => (y)", "float[1] unused")
    kind = {"float16": np.float16, "float": np.float32, "double": np.float64}[dtype]
    x = np.array([[0, 2000], [-3000, -3000]], kind)
    (actual,) = run(model, {"x": x}).values()
    assert actual.dtype == kind
    np.testing.assert_allclose(actual, [[-2000, 0], [-np.log(2), -np.log(2)]], rtol=1e-3)
    assert run(model, {"x": x[:0]})["y"].shape == (0, 2)


def test_a_slope_that_is_no_number_is_only_for_negative_numbers() -> None:
    model = model_of("y = PRelu (x, s)", "(float[N] x, float[N] s) => (y)", "float[1] unused")
    x, slope = np.array([-2, -2, 0, 3], np.float32), np.array([0.5, np.nan, np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(run(model, {"x": x, "s": slope})["y"], np.array([-1, np.nan, 0, 3], np.float32))


def test_a_slope_is_broadcast_to_x_alone() -> None:
    model = model_of("y = PRelu (x, s)", "(float[N] x, float[M] s) => (y)", "float[1] unused")
    single, two = np.array([-3], np.float32), np.array([2, 4], np.float32)
    assert run(model, {"x": -two, "s": single})["y"].tolist() == [6, 12]
    with pytest.raises(EvaluationError):
        run(model, {"x": single, "s": two})


@pytest.mark.parametrize("exponent", ["float e = {0.5}", "float[1] e = {0.5}", "float[4] e = {0.5, 0.5, 0.5, 0.5}"])
def test_minus_infinity_raised_to_a_half_is_infinity(exponent: str) -> None:
    model = model_of("y = Pow (x, e)", "(float[N] x) => (y)", exponent)
    actual = run(model, {"x": np.array([-np.inf, -0.0, -4, 4], np.float32)})["y"]
    np.testing.assert_array_equal(actual, np.array([np.inf, 0, np.nan, 2], np.float32))
    assert not np.signbit(actual[1])


def test_softmax_of_float16_is_rounded_once() -> None:
    x = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float16)
    exponentials = np.exp(x.astype(np.float64))
    actual = run(model_of("y = Softmax (x)", "(float16[N,33] x) => (y)", "float[1] unused"), {"x": x})["y"]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, exponentials / exponentials.sum(1, keepdims=True), rtol=2**-11, atol=2**-24)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_log_sum_exp_of_infinities_nothing_and_large_numbers(dtype: type, keepdims: int) -> None:
    name = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    body = f"y = ReduceLogSumExp <keepdims = {keepdims}> (x, a)"
    model = model_of(body, f"({name}[N,M] x) => (y)", "int64[1] a = {1}")
    x = np.array([[-np.inf, -np.inf], [np.inf, 0], [-np.inf, 3], [2000, 2000], [np.nan, 1]], dtype)
    actual = run(model, {"x": x})["y"]
    assert actual.dtype == dtype and actual.shape == ((5, 1) if keepdims else (5,))
    np.testing.assert_allclose(actual.ravel(), [-np.inf, np.inf, 3, 2000 + np.log(2), np.nan], rtol=1e-3)
    np.testing.assert_array_equal(run(model, {"x": x[:, :0]})["y"].ravel(), [-np.inf] * 5)


@pytest.mark.parametrize(
    ("attributes", "axes", "expected"),
    [
        ("keepdims = 0", "{1}", [5, 25]),
        ("keepdims = 1", "{-1}", [[5], [25]]),
        ("keepdims = 0", "{}", 30),
        ("keepdims = 0, noop_with_empty_axes = 1", "{}", [[1, 4], [9, 16]]),
    ],
)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float"])
def test_sums_of_squares_keep_their_type(attributes: str, axes: str, expected: object, dtype: str) -> None:
    count = axes.count("1")
    model = model_of(
        f"y = ReduceSumSquare <{attributes}> (x, a)", f"({dtype}[N,M] x) => (y)", f"int64[{count}] a = {axes}"
    )
    x = np.array([[1, 2], [3, 4]], {"int32": np.int32, "int64": np.int64, "float": np.float32}[dtype])
    actual = run(model, {"x": x})["y"]
    assert actual.dtype == x.dtype
    np.testing.assert_array_equal(actual, expected)


def moec_model(tokens: str = "T") -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Route and Experts in one graph, weights as initializers."""
    generator = np.random.default_rng(0)
    arrays = {"up": generator.normal(size=(4, 6, 5)), "down": generator.normal(size=(4, 5, 3))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    x, logits = (ir.val(name, ir.DataType.FLOAT, (tokens, size)) for name, size in (("x", 5), ("logits", 4)))
    constants = {name: ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    routed = make_node("Route", {"logits": logits}, RouteSpec(k=2, normalize=True))
    inputs = {"x": x, "weights": routed.outputs[0], "experts": routed.outputs[1], **constants}
    node = make_node("Experts", inputs, ExpertsSpec())
    node.outputs[0].name = "y"
    graph = ir.Graph([x, logits], [node.outputs[0]], nodes=[routed, node], initializers=list(constants.values()))
    return ir.Model(graph, ir_version=10), arrays


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_moec_operators_run_in_a_graph(tokens: int) -> None:
    model, arrays = moec_model()
    model.opset_imports.update({"": 24})
    generator = np.random.default_rng(1)
    x = generator.normal(size=(tokens, 5)).astype(np.float32)
    logits = generator.normal(size=(tokens, 4)).astype(np.float32)
    outputs = run(model, {"x": x, "logits": logits})
    expected = semantics.moe(RouteSpec(k=2, normalize=True), ExpertsSpec(), x, logits, None, **arrays)
    np.testing.assert_array_equal(outputs["y"], expected)


def test_a_cut_out_reads_weights_itself_and_takes_boundary_values() -> None:
    model, arrays = moec_model()
    node = model.graph[1]
    x, weights, ids = node.inputs[:3]
    feeds = {x: np.ones((2, 5)), weights: np.ones((2, 1)), ids: np.array([[3], [-1]], np.int32)}
    (y,) = evaluate([node], feeds, node.outputs)
    np.testing.assert_array_equal(
        y, semantics.experts(ExpertsSpec(), feeds[x], feeds[weights], feeds[ids], arrays["up"], arrays["down"])
    )


def test_a_fed_weight_replaces_the_one_in_the_model() -> None:
    model, arrays = moec_model()
    node = model.graph[1]
    x, weights, ids, _, down = node.inputs
    feeds = {x: np.ones((1, 5)), weights: np.ones((1, 1)), ids: np.zeros((1, 1), np.int32), down: arrays["down"] * 0}
    assert not evaluate([node], feeds, node.outputs)[0].any()


def test_an_evaluator_runs_many_times() -> None:
    model, _ = moec_model()
    graph = model.graph
    evaluator = Evaluator(list(graph), graph.inputs, graph.outputs, {"": 24})
    for tokens in (3, 0, 1):
        x, logits = np.ones((tokens, 5), np.float32), np.zeros((tokens, 4), np.float32)
        assert evaluator.run({graph.inputs[0]: x, graph.inputs[1]: logits})[0].shape == (tokens, 5)


def test_a_value_that_nothing_gives_is_named() -> None:
    model, _ = moec_model()
    node = model.graph[1]
    with pytest.raises(ValueError, match=f"{node.inputs[1].name!r} is not constant"):
        evaluate([node], {node.inputs[0]: np.ones((1, 5))}, node.outputs)


def test_two_values_of_one_name_are_refused() -> None:
    model = model_of("a = Relu (x)\n y = Neg (a)", "(float[T] x) => (y)")
    model.graph[0].outputs[0].name = "x"
    with pytest.raises(ValueError, match="two values are named 'x'"):
        run(model, {"x": np.zeros(1, np.float32)})


def test_an_unused_output_is_not_taken_for_an_absent_input() -> None:
    model = model_of(
        '"", ids = TopK (x, k)\n y = Clip (x, "", top)', "(float[T,2] x, float top) => (y)", "int64[1] k = {1}"
    )
    outputs = run(model, {"x": np.array([[1, 5]], np.float32), "top": np.array(3, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [[1, 3]])


def test_bfloat16_models_run() -> None:
    model = model_of("a = MatMul (x, x)\n y = Softmax (a)", "(bfloat16[2,2] x) => (y)")
    assert run(model, {"x": np.eye(2, dtype=ml_dtypes.bfloat16)})["y"].dtype == ml_dtypes.bfloat16
    assert run(model, {"x": np.eye(2, dtype=ml_dtypes.bfloat16)}, dtype=np.float64)["y"].dtype == np.float64


@pytest.mark.parametrize("product", ["MatMul (rows, x)", "MatMul (x_rows, columns)"])
def test_float64_reaches_gathered_weights(product: str) -> None:
    """They are moved as they are and become float64 where they are multiplied, whichever side they are on."""
    body = f"rows = Gather (w, ids)\n columns = Transpose <perm = [0, 2, 1]> (rows)\n y = {product}"
    model = model_of(body, "(float[3,400,1] x, float[3,1,400] x_rows, int64[3] ids) => (y)", "float[1] w = {0}")
    random = np.random.default_rng(0)
    weights = random.normal(size=(4, 500, 400)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weights)
    x, ids = random.normal(size=(3, 400, 1)).astype(np.float32), np.array([3, 0, 3])
    actual = run(model, {"x": x, "x_rows": x.transpose(0, 2, 1), "ids": ids}, dtype=np.float64)["y"]
    want = weights[ids].astype(np.float64) @ x.astype(np.float64)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual.reshape(want.shape), want, rtol=1e-12, atol=1e-12)


def test_float64_reaches_what_is_only_moved() -> None:
    model = model_of("a = Gather (w, ids)\n y = MatMul (a, a)", "(int64[2] ids) => (y, a)", "float[2,2] w = {1,2,3,4}")
    outputs = run(model, {"ids": np.array([1, 0])}, dtype=np.float64)
    assert outputs["a"].dtype == outputs["y"].dtype == np.float64


def test_a_node_that_cannot_be_computed_is_named() -> None:
    model = model_of("[the_node] y = Reshape (x, shape)", "(float[T] x, int64[1] shape) => (y)")
    with pytest.raises(EvaluationError, match=r"node 'the_node' \(Reshape\): cannot reshape"):
        run(model, {"x": np.zeros(3, np.float32), "shape": np.array([2])})


def test_values_live_until_their_last_use() -> None:
    model = model_of("a = Relu (x)\n b = Neg (a)\n c = Add (a, b)\n y = Add (c, a)", "(float[T] x) => (y, b)")
    outputs = run(model, {"x": np.array([2, -1], np.float32)})
    np.testing.assert_array_equal(outputs["y"], [2, 0])
    np.testing.assert_array_equal(outputs["b"], [-2, 0])


def picking(body: str, read: list[int]) -> ir.Model:
    """A model with a stack [3,2,2] in bfloat16 that records which experts were read."""
    model = model_of(body, "(int64[T] ids) => (y)", "bfloat16[3,2,2] w = {0,0,0,0,0,0,0,0,0,0,0,0}")

    def load(expert: int) -> np.ndarray:
        read.append(expert)
        return np.full((2, 2), expert + 1, ml_dtypes.bfloat16)

    model.graph.initializers["w"].const_value = ExpertStack("w", ir.DataType.BFLOAT16, (3, 2, 2), load)
    return model


_GATHER = "p = Gather (w, ids)\n y = Cast <to = 1> (p)"
_GATHER_ND = """
    last = Constant <value_ints = [-1]> ()
    column = Unsqueeze (ids, last)
    p = GatherND (w, column)
    y = Cast <to = 1> (p)"""


_GATHER_CAST = "wide = Cast <to = 1> (w)\n y = Gather (wide, ids)"


@pytest.mark.parametrize("body", [_GATHER, _GATHER_ND, _GATHER_CAST])
@pytest.mark.parametrize("dtype", [None, np.float64])
@pytest.mark.parametrize(("ids", "produced"), [([2, 0, 2], [0, 2]), ([-1], [2]), ([], [])])
def test_of_a_stack_the_experts_that_are_picked_are_made(
    body: str, ids: list[int], produced: list[int], dtype: type | None
) -> None:
    read: list[int] = []
    model = picking(body, read)
    y = run(model, {"ids": np.array(ids, np.int64)}, dtype=dtype)["y"]
    np.testing.assert_array_equal(y, np.broadcast_to((np.array(ids) % 3 + 1).reshape(-1, 1, 1), (len(ids), 2, 2)))
    assert y.dtype == (dtype or np.float32)
    assert read == produced


def test_rows_are_picked_from_the_experts_that_they_are_part_of() -> None:
    read: list[int] = []
    model = picking("pairs = Constant <value: tensor = int64[2,2] {2,1,0,-1}> ()\n y = GatherND (w, pairs)", read)
    y = run(model, {"ids": np.zeros(0, np.int64)})["y"]
    np.testing.assert_array_equal(y.astype(float), [[3, 3], [1, 1]])
    assert read == [0, 2]


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather <axis = 1> (w, ids)",
        "p = Gather (w, ids)\n y = MatMul (p, w)",
        "wide = Cast <to = 1> (w)\n p = Gather (wide, ids)\n y = MatMul (p, wide)",
    ],
)
def test_a_stack_that_is_read_in_another_way_is_made_as_a_whole(body: str) -> None:
    read: list[int] = []
    run(picking(body, read), {"ids": np.array([1, 0, 1], np.int64)}, dtype=np.float64)
    assert read == [0, 1, 2]


def test_picking_an_expert_that_a_stack_does_not_have() -> None:
    with pytest.raises(EvaluationError, match=r"Gather.*experts 1 to 3 of 3"):
        run(picking("y = Gather (w, ids)", []), {"ids": np.array([3, 1], np.int64)})
