"""Attention on CPU: the kernel on every machine, and the operator in graphs, against the reference interpreter."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import ml_dtypes
import numpy as np
import pytest
import tvm

from moec.common.errors import UnsupportedError
from moec.passes import pipeline
from moec.targets.cpu.dense import converters
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.attention import attention
from moec.targets.cpu.kernels.attention_problem import FEW_QUERIES
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.kernel import select
from moec.targets.tvm.lowering.lowering import lower
from moec.targets.tvm.onnx.converters import all_converters
from moec.targets.tvm.phases.pipeline import operator_phases
from moec.targets.tvm.phases.provenance import bindings_of
from moec.targets.tvm.phases.share_views import is_call_of

from ...products import sampled, thinned
from ..attention_cases import PROBLEM, expected, inside_windows, normal, operands, room, variants, windows
from ..cuda.test_attention_sinks import causal_model, feeds
from .kernel_runner import Kernel, build, machines
from .test_dense import _check, _compiled, _model

SIZES = [(0, 3), (1, 0), (1, 1), (1, 600), (3, 70), (4, 256), (37, 37), (70, 130), (33, 64)]


@functools.cache
def built(problem: AttentionProblem, machine: Machine, dtype: str = "float32") -> Kernel:
    return build(attention(problem, machine, dtype), machine)


def check(problem: AttentionProblem, machine: Machine, dtype: type = np.float32, tolerance: float = 3e-5) -> None:
    run = built(problem, machine, np.dtype(dtype).name)
    for queries, keys in SIZES:
        if problem.causal == "last" and keys < queries:
            continue
        arrays = operands(problem, queries, keys)
        for name in ("query", "key", "value"):
            arrays[name] = arrays[name].astype(dtype)
        actual = run(*arrays.values(), room(problem, arrays["query"]))
        expected_result = expected(problem, arrays)
        np.testing.assert_allclose(actual.astype(np.float64), expected_result, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "problem"),
    sampled(
        machines("sse4", "avx2", "avx512", "neon"),
        [PROBLEM, AttentionProblem(1, 7, 1.0), AttentionProblem(64, 33, 0.1, 3)],
        3,
    ),
)
def test_any_size_on_every_machine(name, problem):
    check(problem, Machine.for_name(name))


def test_query_heads_of_a_group_that_are_many_rows_alone():
    check(AttentionProblem(8, 8, 0.3, heads_per_group=12), Machine.host())
    check(AttentionProblem(8, 8, 0.3, heads_per_group=17), Machine.host())


def test_sinks_take_weight_and_give_nothing():
    """A sink is a further key of zeros to which the mask adds the sink; a sink of -inf has no effect."""
    problem = dataclasses.replace(PROBLEM, mask="float32", mask_broadcast=(True, False, False))
    run = built(dataclasses.replace(problem, has_sinks=True), Machine.host())
    sinks = np.array([2.5, -np.inf, 0, -1], np.float32)
    for queries, keys in [(3, 70), (2, 0), (1, 300), (20, 70)]:
        arrays = operands(problem, queries, keys)
        padded = {name: np.pad(arrays[name], [(0, 0), (0, 0), (1, 0), (0, 0)]) for name in ("key", "value")}
        column = np.broadcast_to(sinks[:, None, None], (1, 4, queries, 1))
        padded["mask"] = np.concatenate([column, arrays["mask"]], axis=3)
        result = np.full((*arrays["query"].shape[:3], problem.value_size), 7, np.float32)
        actual = run(*arrays.values(), sinks, result)
        np.testing.assert_allclose(actual, expected(problem, arrays | padded), rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("size", [3, 2000])
def test_a_causal_order_beside_sinks_is_read_from_the_mask(size, monkeypatch):
    problems = []
    monkeypatch.setattr(
        "moec.targets.cpu.attention.select",
        lambda kernels, launch, machine: problems.append(launch[0]) or select(kernels, launch, machine),
    )
    runs = [
        {name: value for name, value in feeds(new, past).items() if name not in ("mask", "sinks")}
        for new, past in ((1, 300), (20, 5), (0, 7))
    ]
    _check(causal_model("-3.4e38", size), *runs)
    assert [(problem.causal, problem.window, problem.mask) for problem in problems] == [("last", size, "")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 4e-3), (ml_dtypes.bfloat16, 3e-2)])
def test_half_precision(dtype, tolerance):
    check(PROBLEM, Machine.host(), dtype, tolerance)


@thinned("problem", list(variants()), 3, ids=str)
def test_masks(problem):
    check(problem, Machine.host())


@pytest.mark.nightly
@pytest.mark.parametrize("problem", list(windows()), ids=str)
def test_windows(problem):
    check(problem, Machine.host())


@pytest.mark.parametrize(("queries", "keys"), [(1, 900), (4, 600), (3, 40), (70, 300), (200, 200)])
@pytest.mark.parametrize(
    "window", [64, *(pytest.param(size, marks=pytest.mark.nightly) for size in (1, 37, 130, 1000))]
)
def test_keys_that_are_not_read_leave_the_bits(queries, keys, window):
    """A window alone gives what the same window as a mask gives, and a causal order what a mask of it gives."""
    arrays = operands(PROBLEM, queries, keys)
    run = {
        problem: functools.partial(built(problem, Machine.host()), *arrays.values())
        for problem in (CAUSAL, dataclasses.replace(CAUSAL, window=window))
    }
    order = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    inside = inside_windows(dataclasses.replace(CAUSAL, window=window), arrays)
    for problem, seen in zip(run, (order, order & inside), strict=True):
        mask = np.where(seen, 0, -np.inf).astype(np.float32).reshape(-1, 1, queries, keys)[:1]
        expected_result = built(MASKED, Machine.host())(*arrays.values(), mask, empty(queries))
        np.testing.assert_array_equal(run[problem](empty(queries)), expected_result)


def test_keys_outside_of_windows_are_not_read():
    """They may hold anything, as pages that nobody wrote do; those inside may not."""
    problem = dataclasses.replace(CAUSAL, window=64)
    for queries in (1, 70):
        arrays = operands(PROBLEM, queries, 900)
        expected_result = built(problem, Machine.host())(*arrays.values(), empty(queries))
        for place, is_equal in ((100, True), (899, False)):
            spoiled = {name: array.copy() for name, array in arrays.items()}
            spoiled["key"][:, :, place] = np.nan
            actual = built(problem, Machine.host())(*spoiled.values(), empty(queries))
            assert np.array_equal(actual, expected_result) == is_equal


@pytest.mark.nightly
@pytest.mark.parametrize("length", [-(2**63), -(2**62), -5, 901, 964, 2**62, 2**63 - 1])
def test_lengths_that_are_none_reach_no_other_memory(length):
    """A window that lies behind all keys, or before them, reads nothing."""
    problem = dataclasses.replace(PROBLEM, causal="lengths", has_lengths=True, window=64)
    for queries in (1, 70):
        arrays = operands(problem, queries, 900) | {"lengths": np.array([length, 900])}
        actual = built(problem, Machine.host())(*arrays.values(), empty(queries))
        assert np.isfinite(actual).all()
        if length < 0 or length > 964 + queries:
            assert not actual[0].any()


def empty(queries: int) -> np.ndarray:
    return np.empty((2, 4, queries, 24), np.float32)


def causal_mask(queries: int, keys: int, hidden: float = -3.4028235e38) -> np.ndarray:
    """As exporters write it: a number to add to the scores."""
    visible = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    return np.where(visible, 0, hidden).astype(np.float32)[None, None]


CAUSAL = dataclasses.replace(PROBLEM, causal="last")
MASKED = dataclasses.replace(PROBLEM, mask="float32", mask_broadcast=(True, True, False))


@pytest.mark.parametrize("hidden", [-3.4028235e38, -np.inf, -1e4, -3.0])
@pytest.mark.parametrize("padding", [0, 150])
def test_blocks_of_hidden_keys(hidden, padding):
    """Hidden behind the queries, and before them, as padding on the left is. Where all keys are, the sum of a score and
    a number of the mask is what float32 makes of it."""
    arrays = operands(PROBLEM, 200, 260)
    arrays["mask"] = causal_mask(200, 260, hidden)
    arrays["mask"][..., :padding] = hidden
    actual = built(MASKED, Machine.host())(*arrays.values(), np.empty((2, 4, 200, 24), np.float32))
    # Beside 1e4 float32 has steps of 2**-10: a score that is rounded to the next one has a weight off by so much.
    tolerance = 1e-3 if hidden == -1e4 else 1e-4
    np.testing.assert_allclose(actual, expected(MASKED, arrays, None), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("queries", [3, 200])
@pytest.mark.parametrize("name", ["query", "key", "value", "mask"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_infinity_and_nan_spread_as_in_the_reference(number, name, queries):
    """Also from keys that a mask hides: zero times infinity is not a number."""
    arrays = operands(PROBLEM, queries, 260)
    arrays["mask"] = causal_mask(queries, 260)
    arrays[name][..., -1, 7] = number
    actual = built(MASKED, Machine.host())(*arrays.values(), np.empty((2, 4, queries, 24), np.float32))
    expected_result = expected(MASKED, arrays)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected_result))
    np.testing.assert_allclose(actual, expected_result, rtol=3e-5, atol=3e-5)


def test_scores_that_overflow_behind_the_frontier_are_computed():
    arrays = operands(PROBLEM, 200, 260)
    arrays["mask"] = causal_mask(200, 260, -np.inf)
    arrays["query"][...] = 1e25
    arrays["key"][:, :, -1] = 1e25
    actual = built(MASKED, Machine.host())(*arrays.values(), np.empty((2, 4, 200, 24), np.float32))
    assert np.isnan(actual).all()


@pytest.mark.parametrize("heads_per_group", [1, 12, 17])
@pytest.mark.parametrize("window", [0, 40])
def test_a_query_has_the_same_bits_beside_few_others(heads_per_group, window):
    problem = dataclasses.replace(PROBLEM, causal="last", heads_per_group=heads_per_group, window=window)
    run, arrays = built(problem, Machine.host()), operands(problem, FEW_QUERIES, 515)
    together = run(*arrays.values(), room(problem, arrays["query"]))
    for query in range(FEW_QUERIES):
        keys = 515 - FEW_QUERIES + query + 1
        alone = [arrays["query"][:, :, query : query + 1], arrays["key"][:, :, :keys], arrays["value"][:, :, :keys]]
        alone = [np.ascontiguousarray(array) for array in alone]
        np.testing.assert_array_equal(run(*alone, room(problem, alone[0]))[:, :, 0], together[:, :, query])


@pytest.mark.parametrize("queries", [2, 100])
def test_results_are_bit_identical_for_any_number_of_threads(queries, in_pool):
    run, arrays = built(MASKED, Machine.host()), operands(PROBLEM, queries, 700)
    arrays["mask"] = causal_mask(queries, 700)
    result = np.empty((2, 4, queries, 24), np.float32)
    actual = [in_pool(threads, lambda: run(*arrays.values(), result)) for threads in (1, 2, 3)]
    np.testing.assert_array_equal(actual[0], actual[1])
    np.testing.assert_array_equal(actual[0], actual[2])


@thinned("mask", ["float[B,4,S,1]", None, "bool[B,1,S,P]", "float[S,P]"], 2)
def test_grouped_heads(mask):
    declared = f", {mask} m" if mask else ""
    text = f"""g (float[B,4,S,16] q, float[B,2,P,16] k, float[B,2,P,20] v{declared}) => (float[B,4,S,20] y) {{
        y = Attention <scale = 0.3> (q, k, v{", m" if mask else ""}) }}"""
    inputs = {"q": normal(2, 4, 13, 16), "k": normal(2, 2, 70, 16), "v": normal(2, 2, 70, 20)}
    shapes = {"float[S,P]": (13, 70), "bool[B,1,S,P]": (2, 1, 13, 70), "float[B,4,S,1]": (2, 4, 13, 1)}
    if mask:
        inputs["m"] = normal(*shapes[mask]) > -1 if "bool" in mask else normal(*shapes[mask])
    _check(_model(text), inputs)


def test_a_scale_of_zero_is_no_default():
    text = """g (float[B,2,S,8] q, float[B,2,P,8] k, float[B,2,P,8] v) => (float[B,2,S,8] y) {
        y = Attention <scale = 0.0> (q, k, v) }"""
    keys, values = normal(1, 2, 9, 8), normal(1, 2, 9, 8)
    _check(_model(text), *({"q": normal(1, 2, queries, 8), "k": keys, "v": values} for queries in (1, 2 * FEW_QUERIES)))


@pytest.mark.nightly  # every run has joined heads with a cache
def test_joined_heads():
    text = """g (float[B,S,32] q, float[B,S,16] k, float[B,S,16] v) => (float[B,S,32] y) {
        y = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v) }"""
    _check(_model(text), {"q": normal(2, 9, 32), "k": normal(2, 9, 16), "v": normal(2, 9, 16)})


def test_a_cache_inside_the_operator():
    text = """g (float[B,S,32] q, float[B,S,16] k, float[B,S,16] v, float[B,2,L,8] pk, float[B,2,L,8] pv)
        => (float[B,S,32] y, float[B,2,P,8] keys, float[B,2,P,8] values) {
        y, keys, values = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v, , pk, pv) }"""
    runs = []
    for queries, past in itertools.product((1, 2 * FEW_QUERIES), (0, 5)):
        inputs = {"q": normal(2, queries, 32), "k": normal(2, queries, 16), "v": normal(2, queries, 16)}
        runs.append(inputs | {"pk": normal(2, 2, past, 8), "pv": normal(2, 2, past, 8)})
    _check(_model(text), *runs)


WINDOW = """g (float[B,4,S,8] q, float[B,2,P,8] k, float[B,2,P,8] v, int64[B] used, bool[B,1,1,P] pad)
    => (float[B,4,S,8] y, float[B,4,S,8] padded)
    <int64 zero = {0}, int64 one = {1}, int64[1] last = {1}, int64[2] middle = {1, 2}, int64 size = {3}> {
    queries = Shape <start = 2, end = 3> (q) keys = Shape <start = 2, end = 3> (k) s = Squeeze (queries)
    p = Squeeze (keys) count = Range (zero, s, one) columns = Range (zero, p, one) past = Sub (used, queries)
    rows = Unsqueeze (past, last) position = Add (rows, count) far = Sub (position, size) first = Unsqueeze (far, last)
    row = Transpose <perm = [0, 2, 1]> (first) start = Unsqueeze (row, last)
    inside = Greater (columns, start) both = And (inside, pad)
    y = Attention <is_causal = 1> (q, k, v, inside, , , used)
    padded = Attention <is_causal = 1> (q, k, v, both, , , used) }"""


def test_a_window_is_read_from_the_mask(monkeypatch):
    """Alone it takes the place of the mask; beside padding, the mask stays."""
    problems = []
    monkeypatch.setattr(
        "moec.targets.cpu.attention.select",
        lambda kernels, launch, machine: problems.append(launch[0]) or select(kernels, launch, machine),
    )
    inputs = {"q": normal(2, 4, 3, 8), "k": normal(2, 2, 600, 8), "v": normal(2, 2, 600, 8), "used": np.array([600, 9])}
    model = _model(WINDOW)
    pipeline.run(model, pipeline.parse("fold-shapes"))
    _check(model, inputs | {"pad": np.arange(1200).reshape(2, 1, 1, 600) % 3 > 0})
    assert [(problem.window, problem.mask) for problem in problems] == [(3, ""), (3, "bool")]


@pytest.mark.parametrize(("result", "masks"), [("y", []), ("padded", ["greater1", "and1"])])
def test_a_mask_that_no_kernel_reads_is_gone_before_kernels_are_fused(result, masks):
    """A kernel reads the mask where it has padding, too."""
    model = _model(WINDOW)
    model.graph.outputs[:] = [output for output in model.graph.outputs if output.name == result]
    pipeline.run(model, pipeline.parse("fold-shapes,remove-dead-nodes"))
    lowered = lower(model, all_converters(converters(Machine.host())))
    called = tvm.ir.transform.Sequential(operator_phases())(lowered.module)
    names = [binding.var.name for binding in bindings_of(called["main"])]
    assert [name for name in names if name in ("greater1", "and1")] == masks
    assert "attention1" in names


def test_a_cache_outside_the_operator():
    text = """g (float[B,4,S,8] q, float[B,2,P,8] k, float[B,2,P,8] v, int64[B] used) => (float[B,4,S,8] y) {
        y = Attention <is_causal = 1> (q, k, v, , , , used) }"""
    inputs = {"q": normal(2, 4, 3, 8), "k": normal(2, 2, 70, 8), "v": normal(2, 2, 70, 8)}
    _check(_model(text), inputs | {"used": np.array([66, 3])})


@pytest.mark.parametrize(
    ("inputs", "call", "message"),
    [
        ("float[B,4,S,8] q, float[B,3,P,8] k, float[B,3,P,8] v", "(q, k, v)", "4 query heads cannot share 3 heads"),
        ("float[B,4,S,D] q, float[B,4,P,D] k, float[B,4,P,D] v", "(q, k, v)", "the size of a head is dynamic"),
        ("float[B,S,9] q, float[B,P,8] k, float[B,P,8] v", "<q_num_heads = 4, kv_num_heads = 4> (q, k, v)", "4 heads"),
    ],
)
def test_what_it_refuses(inputs, call, message):
    model = _model(f"g ({inputs}) => (float[] y) {{ y = Attention {call} }}")
    with pytest.raises(UnsupportedError, match=message):
        _compiled(model)


def test_it_refuses_more_new_keys_than_queries_over_a_cache():
    text = """g (float[B,4,S,8] q, float[B,4,N,8] k, float[B,4,N,8] v, float[B,4,L,8] pk, float[B,4,L,8] pv)
        => (float[B,4,S,8] y, float[B,4,P,8] keys, float[B,4,P,8] values) {
        y, keys, values = Attention <is_causal = 1> (q, k, v, , pk, pv) }"""
    with pytest.raises(UnsupportedError, match="as many new keys as there are queries"):
        _compiled(_model(text))


@pytest.mark.parametrize(
    ("reader", "kernels"),
    [
        ("z = Transpose <perm = [0, 2, 1, 3]> (y)", ["attention"]),
        ("z = Transpose <perm = [0, 3, 1, 2]> (y)", ["attention", "transpose"]),
        ("t = Transpose <perm = [0, 2, 1, 3]> (y) z = Add (y, t)", ["attention", "transpose", "add"]),
    ],
    ids=["only as queries of heads", "in another order", "in both orders"],
)
def test_a_result_is_stored_in_the_order_in_which_it_is_read(reader, kernels):
    text = f"""g (float[B,4,4,8] q, float[B,2,P,8] k, float[B,2,P,8] v) => (float[B,4,X,Y] z) {{
        y = Attention (q, k, v) {reader} }}"""
    _check(_model(text), {"q": normal(2, 4, 4, 8), "k": normal(2, 2, 70, 8), "v": normal(2, 2, 70, 8)})
    lowered = lower(_model(text), all_converters(converters(Machine.host())))
    called = tvm.ir.transform.Sequential(operator_phases())(lowered.module)
    values = [binding.value for binding in bindings_of(called["main"])]
    assert [value.args[0].name_hint for value in values if is_call_of(value, "relax.call_tir")] == kernels
