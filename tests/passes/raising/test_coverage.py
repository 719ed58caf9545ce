"""Blocks with a condition that ordinary inputs never meet: raised with it, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import dialect, interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec, spec_of
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE

from ...products import sampled

NUMBERS = {
    "minus": -10.0,
    "plus": 10.0,
    "cap": 30.0,
    "wide_cap": 1e4,
    "floor": 0.6,
    "tiny": 1e-3,
    "none": 0.0,
    "half": 0.5,
    "unit": 1.0,
    "large": 400.0,
    "hidden_limit": 5000.0,
    "limit": 65504.0,
    "minus_limit": -65504.0,
    "minus_less": -60000.0,
    "million": 1e6,
    "room": 200.5,
}
CONSTANTS = {name: np.array(number, np.float32) for name, number in NUMBERS.items()} | {
    "places": np.int64(300),
    "count": np.int64(777),
    "scalar_zero": np.int64(0),
    "scalar_one": np.int64(1),
    "begin": np.array([0]),
    "middle": np.array([500]),
    "end": np.array([2**40]),
    "depth": np.int64(4),
    "off_on": np.array([0, 1], np.float32),
    "seats": np.array(9, np.float32),
    "nine_and_a_half": np.array(9.5, np.float32),
    "seats_of": np.array([9, 9, 10, 9], np.float32),
    "each": np.array([1e9, 1e9, 900, 1e9], np.float32),
}
LOGITS = "scores = Softmax <axis = -1> (logits)"
WEIGHTS = "w = Div (top, total)"
OF_TOKENS = "w0 = Div (top, total)\n xs = Shape (x)\n tokens = Gather <axis = 0> (xs, scalar_zero)\n"
CONDITIONS = {
    "logits clamped on both sides": (LOGITS, "c = Clip (logits, minus, plus)\n scores = Softmax <axis = -1> (c)"),
    "logits clamped on one side": (LOGITS, "c = Min (logits, plus)\n scores = Softmax <axis = -1> (c)"),
    "logits with a soft cap": (
        LOGITS,
        "c0 = Div (logits, cap)\n c1 = Tanh (c0)\n c2 = Mul (c1, cap)\n scores = Softmax <axis = -1> (c2)",
    ),
    "logits with a soft cap that is far away": (
        LOGITS,
        "c0 = Div (logits, wide_cap)\n c1 = Tanh (c0)\n c2 = Mul (c1, wide_cap)\n scores = Softmax <axis = -1> (c2)",
    ),
    "logits that are no numbers": (
        LOGITS,
        "n = IsNaN (logits)\n c = Where (n, none, logits)\n scores = Softmax <axis = -1> (c)",
    ),
    "a floor under the sum": (WEIGHTS, "safe = Max (total, floor)\n w = Div (top, safe)"),
    "a floor by a choice": (WEIGHTS, "b = Less (total, floor)\n safe = Where (b, floor, total)\n w = Div (top, safe)"),
    "small weights left out": (WEIGHTS, "w0 = Div (top, total)\n b = Less (w0, tiny)\n w = Where (b, none, w0)"),
    "weights in steps": (
        WEIGHTS,
        "w0 = Div (top, total)\n w1 = Mul (w0, million)\n w2 = Round (w1)\n w = Div (w2, million)",
    ),
    "weights that depend on the size of x": (
        WEIGHTS,
        "w0 = Div (top, total)\n ax = Abs (x)\n m = ReduceMax <keepdims = 1> (ax, minus_one)\n b = Greater (m, large)\n"
        "b1 = Cast <to = 1> (b)\n b2 = Mul (b1, half)\n b3 = Add (b2, unit)\n w = Mul (w0, b3)",
    ),
    "the first tokens alone": (
        WEIGHTS,
        OF_TOKENS + "p = Range (scalar_zero, tokens, scalar_one)\n b = Less (p, places)\n f = Cast <to = 1> (b)\n"
        "column = Unsqueeze (f, minus_one)\n w = Mul (w0, column)",
    ),
    "a limit on the number of tokens": (
        WEIGHTS,
        OF_TOKENS + "b = Greater (tokens, count)\n w = Where (b, top, w0)",
    ),
    "the tokens up to a place": (
        WEIGHTS,
        "w0 = Div (top, total)\n front = Slice (w0, begin, middle, begin)\n back = Slice (w0, middle, end, begin)\n"
        "less = Mul (back, half)\n w = Concat <axis = 0> (front, less)",
    ),
    "a capacity without a count or a comparison": (
        WEIGHTS,
        OF_TOKENS + "n = Unsqueeze (tokens, begin)\n square = Concat <axis = 0> (n, n)\n"
        "ones = ConstantOfShape <value = float[1] {1.0}> (square)\n before = Trilu <upper = 0> (ones)\n"
        "best = Gather <axis = 1> (chosen, scalar_zero)\n mine = OneHot <axis = -1> (best, depth, off_on)\n"
        "sums = MatMul (before, mine)\n own = Mul (sums, mine)\n place = ReduceSum <keepdims = 1> (own, minus_one)\n"
        "over = Sub (room, place)\n left = Relu (over)\n keep = Sign (left)\n w = Mul (w0, keep)",
    ),
}
EXPERTS = {
    "a clamp behind the activation": ("a = Mul (silu, u)", "a0 = Mul (silu, u)\n a = Min (a0, hidden_limit)"),
    "a clamp on what an expert returns": (
        "weighted = Mul (o,",
        "oc = Clip (o, minus_limit, limit)\n weighted = Mul (oc,",
    ),
    "a clamp that is not symmetric": (
        "weighted = Mul (o,",
        "oc = Clip (o, minus_less, limit)\n weighted = Mul (oc,",
    ),
    "a limit for one expert": (
        "weighted = Mul (o,",
        "own = Gather <axis = 0> (each, pair_ids)\n column = Unsqueeze (own, minus_one)\n oc = Min (o, column)\n"
        "weighted = Mul (oc,",
    ),
}
RUNS = ((1, 1.0), (7, 1.0), (9, 1e-2), (50, 30.0), (40, 1e3), (20, 1e5), (3000, 1.0), (11, 1e-6))
"""Numbers of tokens, and the size of x."""


@pytest.fixture
def raised(build, texts, normal) -> Callable[[str, str, str], tuple[ir.Model, Report]]:
    """``raised(formulation, text, condition)``: the model whose ``text`` is replaced by ``condition``, raised, after it
    was compared with the model before."""

    def run(formulation: str, text: str, condition: str) -> tuple[ir.Model, Report]:
        shapes = {"batched": [(4, 10, 6), (4, 6, 5)], "dense": [(4, 6, 5), (4, 5, 6)]}.get(formulation, [])
        stacked = dict(zip(("up", "down"), (normal(*shape) for shape in shapes), strict=False))
        assert text in texts[formulation]
        model, report = build(texts[formulation].replace(text, condition), **stacked, **CONSTANTS), Report()
        before = model.clone()
        RaiseMoE().apply(model, report)
        for tokens, size in RUNS:
            x = (np.random.default_rng(tokens).normal(size=(tokens, 6)) * size).astype(np.float32)
            want, got = (interpreter.run(one, {"x": x}, dtype=np.float64)["y"] for one in (before, model))
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        return model, report

    return run


@pytest.mark.parametrize(("formulation", "condition"), sampled(["batched", "dense", "loop"], CONDITIONS, 5))
def test_a_condition_of_the_router_is_kept(raised, formulation, condition):
    model, report = raised(formulation, *CONDITIONS[condition])
    assert report.remarks or any(dialect.is_moec(node) for node in model.graph)


@pytest.mark.parametrize("condition", EXPERTS)
def test_a_condition_of_the_experts_is_kept(raised, condition):
    model, report = raised("batched", *EXPERTS[condition])
    assert report.remarks or any(dialect.is_moec(node) for node in model.graph)


def test_a_clamp_of_logits_stays_outside(raised):
    model, _ = raised("batched", *CONDITIONS["logits clamped on both sides"])
    assert [node.op_type for node in model.graph if node.op_type in ("Clip", "Route")] == ["Clip", "Route"]


def test_a_rounding_of_logits_stays_outside(raised):
    condition = "half_logits = Cast <to = 10> (logits)\n c = Cast <to = 1> (half_logits)\n" + LOGITS.replace(
        "logits", "c"
    )
    model, _ = raised("batched", LOGITS, condition)
    kinds = [node.op_type for node in model.graph if node.op_type in ("Cast", "Route")]
    assert kinds[:3] == ["Cast", "Cast", "Route"]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_rounding_of_what_an_expert_returns_is_no_rounding_of_the_block(raised, dtype):
    steps = f"o1 = Cast <to = {dtype.value}> (o)\n o2 = Cast <to = 1> (o1)\n weighted = Mul (o2,"
    model, report = raised("batched", "weighted = Mul (o,", steps)
    assert not any(dialect.is_moec(node) for node in model.graph)
    (remark,) = report.remarks
    assert "it rounds to a type that holds less than x and y do" in remark.message


def test_a_router_in_float32_of_a_block_in_float16_is_raised(build, texts, normal):
    """Its weights are rounded to what x and y are rounded to."""
    text = (
        texts["batched"]
        .replace("(x,", "(x16,")
        .replace(LOGITS, "c = Cast <to = 1> (logits)\n" + LOGITS.replace("logits", "c"))
    )
    text = text.replace(WEIGHTS, "w32 = Div (top, total)\n w = Cast <to = 10> (w32)")
    text = "x16 = Cast <to = 10> (x)\n" + text.replace("y = ", "y16 = ") + "y = Cast <to = 1> (y16)"
    sizes = {"router": (6, 4), "up": (4, 10, 6), "down": (4, 6, 5)}
    model = build(text, **{name: normal(*size).astype(np.float16) for name, size in sizes.items()})
    assert RaiseMoE().apply(model, Report())
    assert any(dialect.is_moec(node, "Route") for node in model.graph)


def test_floor_threshold_and_limit_become_attributes(raised):
    def spec(condition, kind, table=CONDITIONS):
        model, _ = raised("batched", *table[condition])
        return next(spec_of(node, kind) for node in model.graph if dialect.is_moec(node, kind.__name__[:-4]))

    assert spec("a floor under the sum", RouteSpec).normalize_floor == pytest.approx(0.6)
    assert spec("small weights left out", RouteSpec).threshold == pytest.approx(1e-3)
    assert spec("a clamp on what an expert returns", ExpertsSpec, EXPERTS).output_limit == 65504


def test_a_side_that_nothing_reaches_is_named(raised):
    """The capacity of a million tokens is more than is tried."""
    steps = (CONDITIONS["a limit on the number of tokens"][1]).replace("count)", "end1)")
    steps = steps.replace("b = Greater", "end1 = Squeeze (end, begin)\n b = Greater")
    model, report = raised("batched", WEIGHTS, steps)
    assert not any(dialect.is_moec(node) for node in model.graph)
    (remark,) = report.remarks
    assert "no input was found that takes one side of a decision (Greater node" in remark.message
    (evidence,) = [attempt.evidence for attempt in report.unraised[0].attempts if attempt.evidence is not None]
    assert evidence.difference <= evidence.tolerance
    sides = {decision.operator: [side.seen for side in decision.sides] for decision in evidence.decisions}
    assert sides["Greater"] == ["unseen", "trial"]
    assert evidence.decisions[0].operator == "Greater"


OVERFLOW = """ax = Abs (x)
    m = ReduceMax <keepdims = 1> (ax, minus_one)
    b = Greater (m, large)
    c = Where (b, half, unit)
    e = Exp ({exponent})
    nothing = Mul (e, none)
    w0 = Div (top, total)
    w1 = Mul (w0, c)
    w = Add (w1, nothing)"""


def test_a_side_counts_only_where_the_row_is_compared(build, texts, normal):
    """Beyond the limit of 400 the original is NaN, so that its function is not known there."""
    for exponent, seen in (("m2", False), ("scores1", True)):
        more = "m2 = Mul (m, two_floats)\n" if not seen else "scores1 = ReduceMax <keepdims = 1> (scores, minus_one)\n"
        text = texts["batched"].replace(
            WEIGHTS, OVERFLOW.replace("    e =", more + "    e =").format(exponent=exponent)
        )
        weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5), "two_floats": np.array(2, np.float32)}
        model, report = build(text, **weights, **CONSTANTS), Report()
        assert not RaiseMoE().apply(model, report)
        (remark,) = report.remarks
        assert ("takes one side of a decision (Greater node" in remark.message) != seen


HALVED = "c = Where (b, half, unit)\n w0 = Div (top, total)\n w = Mul (w0, c)"
FULL = """w0 = Div (top, total)
    mine = OneHot <axis = -1> (chosen, depth, off_on)
    first = Gather <axis = 1> (mine, scalar_zero)
    second = Gather <axis = 1> (mine, scalar_one)
    firsts = CumSum (first, scalar_zero)
    seconds0 = CumSum (second, scalar_zero)
    before = ReduceSum <keepdims = 1> (first, begin)
    seconds = Add (seconds0, before)
    own1 = Mul (firsts, first)
    own2 = Mul (seconds, second)
    place1 = ReduceSum <keepdims = 1> (own1, minus_one)
    place2 = ReduceSum <keepdims = 1> (own2, minus_one)
    place = Concat <axis = 1> (place1, place2)
    fits = LessOrEqual (place, seats)
    kept = Cast <to = 1> (fits)
    w = Mul (w0, kept)"""
TRIANGLE = """n = Shape <start = 0, end = 1> (x)
    square = Concat <axis = 0> (n, n)
    ones = ConstantOfShape <value = float[1] {1.0}> (square)
    upto = Trilu <upper = 0> (ones)
    firsts = MatMul (upto, first)"""
CAPACITIES = {
    "a mask of the places": (FULL, 9),
    "below": (FULL.replace("LessOrEqual", "Less"), 8),
    "a triangle, relu and sign": (
        FULL.replace("firsts = CumSum (first, scalar_zero)", TRIANGLE).replace(
            "fits = LessOrEqual (place, seats)\n    kept = Cast <to = 1> (fits)",
            "over = Sub (nine_and_a_half, place)\n left = Relu (over)\n kept = Sign (left)",
        ),
        9,
    ),
    "second choices before first choices": (FULL.replace("(first, begin)", "(second, begin)"), None),
    "from the last token on": (FULL.replace("CumSum (", "CumSum <reverse = 1> ("), None),
    "one expert has more room": (
        FULL.replace("(place, seats)", "(place, each_seats)").replace(
            "fits =", "each_seats = Gather <axis = 0> (seats_of, chosen)\n fits ="
        ),
        None,
    ),
    "half of the weight stays": (FULL.replace("kept = Cast <to = 1> (fits)", "kept = Where (fits, unit, half)"), None),
    "normalised by what is kept": (
        FULL.replace(
            "w = Mul (w0, kept)",
            "w1 = Mul (w0, kept)\n sum = ReduceSum <keepdims = 1> (w1, minus_one)\n"
            "safe = Max (sum, tiny)\n w = Div (w1, safe)",
        ),
        None,
    ),
}


RARE = ("from the last token on", "one expert has more room", "half of the weight stays", "below")


@pytest.mark.parametrize(
    "capacity",
    [pytest.param(capacity, marks=pytest.mark.nightly if capacity in RARE else ()) for capacity in CAPACITIES],
)
def test_a_capacity_is_an_attribute_where_it_is_served_in_the_order_of_the_dialect(raised, capacity):
    text, seats = CAPACITIES[capacity]
    model, report = raised("batched", WEIGHTS, text)
    actual = [spec_of(node, RouteSpec).capacity for node in model.graph if dialect.is_moec(node, "Route")]
    refused = [remark for remark in report.remarks if not remark.message.startswith("assumed: ")]
    assert actual == ([] if seats is None else [seats]) and bool(refused) == (seats is None)


NEVER_TOLD = {
    "only where all of x is zero": (
        "x0 = Gather <axis = 1> (x, zero)\n x1 = Gather <axis = 1> (x, one)\n b = Equal (x0, x1)\n",
        "Equal node 'b': its result == 1",
    ),
    "only without tokens": (
        "n = Shape <start = 0, end = 1> (x)\n rest = Mod (n, count_of_none)\n b = Equal (rest, begin)\n",
        "Equal node 'b': its result == 1",
    ),
    "where an entry of x is zero": ("x0 = Gather <axis = 1> (x, zero)\n b = Equal (x0, none)\n", "differs by"),
}


@pytest.mark.parametrize("condition", NEVER_TOLD)
def test_a_side_counts_only_where_a_row_tells(build, texts, normal, condition):
    """Rows of zeros make zeros, whatever the weights are, and no token makes none."""
    decision, reason = NEVER_TOLD[condition]
    text = texts["batched"].replace(WEIGHTS, decision + HALVED)
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5), "count_of_none": np.array([103], np.int64)}
    model, report = build(text, **weights, **CONSTANTS), Report()
    assert not RaiseMoE().apply(model, report)
    (remark,) = report.remarks
    assert reason in remark.message


def test_a_side_where_the_original_fails_is_not_held_against_it(build, texts, normal):
    """Fewer than three tokens cannot be computed, which is also where the weights would be others."""
    some = "n = Shape <start = 0, end = 1> (x)\n b0 = Less (n, three_rows)\n b = Squeeze (b0, begin)\n"
    some += "c = Where (b, half, unit)\n"
    some += "few = Slice (x, begin, three_rows, begin)\n rows3 = Reshape (few, three_rows_of_six)\n"
    some += "z0 = ReduceSum <keepdims = 0> (rows3)\n z = Mul (z0, none)\n"
    some += "w0 = Div (top, total)\n w1 = Mul (w0, c)\n w = Add (w1, z)"
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5), "three_rows": np.array([3])}
    weights["three_rows_of_six"] = np.array([3, 6])
    runs = some.replace("rows3 = Reshape (few, three_rows_of_six)", "rows3 = Neg (few)")
    for text, is_raised in ((some, True), (runs, False)):
        model = build(texts["batched"].replace(WEIGHTS, text), **weights, **CONSTANTS)
        assert RaiseMoE().apply(model, Report()) == is_raised


@pytest.mark.parametrize(("bound", "is_raised"), [(-1, True), (2**30, False)])
def test_a_bound_of_a_slice_that_only_data_without_tokens_stays_within_is_not_held_against_it(
    build, texts, normal, bound, is_raised
):
    """One token has two weights, which reach beyond a bound of 1, as those of more tokens do."""
    some = "w0 = Div (top, total)\n pairs = Reshape (w0, minus_one)\n front = Slice (pairs, begin, bound, begin)\n"
    some += "z0 = ReduceSum <keepdims = 0> (front)\n z = Mul (z0, none)\n w = Add (w0, z)"
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5), "bound": np.array([bound])}
    model, report = build(texts["batched"].replace(WEIGHTS, some), **weights, **CONSTANTS), Report()
    assert RaiseMoE().apply(model, report) == is_raised
    assert is_raised or "takes one side of a decision (Slice node" in report.remarks[0].message


@pytest.mark.parametrize("error", [ValueError("shapes (3,4) and (5,) do not fit"), KeyError("axis"), MemoryError()])
def test_whatever_goes_wrong_while_matching_is_a_remark(build, texts, normal, monkeypatch, error):
    def stumbles(*arguments, **options):
        raise error

    monkeypatch.setattr("moec.passes.raising.matching.blocks.find_match", stumbles)
    model, report = build(texts["batched"], up=normal(4, 10, 6), down=normal(4, 6, 5)), Report()
    assert not RaiseMoE().apply(model, report)
    (remark,) = report.remarks
    expected = "not enough memory" if isinstance(error, MemoryError) else "it cannot be evaluated apart ("
    assert remark.severity == "warning" and expected in remark.message
