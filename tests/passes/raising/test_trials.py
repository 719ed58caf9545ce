"""Blocks that look like experts on a few ordinary tokens, and compute something else on others: never raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import dialect, interpreter
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE

from ...products import thinned

LATE = np.where(np.arange(4096) < 250, 1, 0.5).astype(np.float32)
CONSTANTS = {
    "unit": np.float32(1),
    "half": np.float32(0.5),
    "large": np.float32(400),
    "far": np.float32(9e4),
    "minus_far": np.float32(-9e4),
    "many": np.int64(100),
    "twice": np.int64(250),
    "two_of": np.int64(2),
    "seats": np.float32(150),
    "eighth": np.float32(8),
    "tiny": np.float32(1e-9),
    "magic": np.float32(1.5 * 2**23),
    "steps": np.float32(16),
    "depth": np.int64(4),
    "off_on": np.array([0, 1], np.float32),
    "expert_one": np.array([0, 1, 0, 0], np.float32),
    "of_places": LATE[:, None],
    "of_counts": LATE,
    "lag": np.array([100, 2]),
    "ramp": np.float32(1e-4),
    "all_but_last": np.where(np.arange(64) < 63, 1, 0.5).astype(np.float32)[:, None],
    "byte": np.float32(256),
    "begin": np.float32(900),
    "end": np.float32(1000),
    "none_at_all": np.float32(0),
}
WEIGHTS = "w = Div (top, total)"
SIZES = """w0 = Div (top, total)
    x_size = Shape (x)
    tokens = Gather <axis = 0> (x_size, scalar_zero)
    places = Range (scalar_zero, tokens, scalar_one)
    amount = Cast <to = 1> (tokens)
    xa = Abs (x)
    largest = ReduceMax <keepdims = 1> (xa, minus_one)
    crowded = Greater (tokens, many)
    wide = Greater (largest, large)
"""
COUNTS = """w0 = Div (top, total)
    mine = OneHot <axis = -1> (chosen, depth, off_on)
    of_token = ReduceSum <keepdims = 0> (mine, one)
    counts = ReduceSum <keepdims = 0> (of_token, zero)
"""
FALLING = """q = Div ({value}, seats)
    q8 = Pow (q, eighth)
    q9 = Neg (q8)
    {result} = Exp (q9)
"""
HALVED = """f0 = Mul (flag, half)
    factor = Sub (unit, f0)
"""
SCALED = "w = Mul (w0, factor)"
ROUTERS = {
    "a factor that falls with the number of tokens": SIZES
    + FALLING.format(value="amount", result="factor")
    + SCALED,
    "a factor that grows slowly with the number of tokens": SIZES
    + "q = Mul (amount, ramp)\n q2 = Mul (q, q)\n factor = Add (unit, q2)\n"
    + SCALED,
    "a factor that falls with the tokens of an expert": COUNTS
    + FALLING.format(value="counts", result="own")
    + "factor = Gather <axis = 0> (own, chosen)\n"
    + SCALED,
    "every second hundred of tokens": SIZES
    + "n = Div (tokens, twice)\n odd = Mod (n, two_of)\n flag = Cast <to = 1> (odd)\n"
    + HALVED
    + SCALED,
    "a table by place, cut": SIZES + "e = Unsqueeze (tokens, zero)\n factor = Slice (of_places, zero, e)\n" + SCALED,
    "a table by place, gathered": SIZES + "factor = Gather <axis = 0> (of_places, places)\n" + SCALED,
    "a table by the number of tokens": SIZES + "factor = Gather <axis = 0> (of_counts, tokens)\n" + SCALED,
    "weights of the hundredth token before": SIZES
    + "none = ConstantOfShape (lag)\n all = Concat <axis = 0> (none, w0)\n before = Gather <axis = 0> (all, places)\n"
    "w = Add (w0, before)",
    "a product of flags": SIZES
    + "b0 = Cast <to = 1> (crowded)\n b1 = Cast <to = 1> (wide)\n flag = Mul (b0, b1)\n"
    + HALVED
    + SCALED,
    "the smaller of flags": SIZES
    + "b0 = Cast <to = 1> (crowded)\n b1 = Cast <to = 1> (wide)\n flag = Min (b0, b1)\n"
    + HALVED
    + SCALED,
    "a choice inside of a choice": SIZES
    + "inner = Where (wide, half, unit)\n factor = Where (crowded, inner, unit)\n"
    + SCALED,
    "one crowded expert": COUNTS
    + "over = Greater (counts, seats)\n b = Cast <to = 1> (over)\n flag = Mul (b, expert_one)\n"
    + HALVED.replace("factor", "own")
    + "factor = Gather <axis = 0> (own, chosen)\n"
    + SCALED,
    "places in a byte": SIZES
    + "p = Cast <to = 2> (places)\n p7 = Cast <to = 7> (p)\n gone = Sub (places, p7)\n lost = Cast <to = 1> (gone)\n"
    "flag0 = Div (lost, byte)\n flag = Unsqueeze (flag0, minus_one)\n"
    + HALVED
    + SCALED,
}  # fmt: skip
EXPERTS = {
    "an activation that differs from relu near zero": (
        "dense",
        "a = Relu (h)",
        "h2 = Mul (h, h)\n h3 = Add (h2, tiny)\n h4 = Sqrt (h3)\n h5 = Add (h, h4)\n a = Mul (h5, half)",
    ),
    "a gap in what experts return that is rarely met by a chosen one": (
        "dense",
        'y = Einsum <equation = "ted,te->td"> (o,',
        "b0 = Greater (o, begin)\n b1 = Less (o, end)\n b = And (b0, b1)\n o2 = Where (b, none_at_all, o)\n"
        'y = Einsum <equation = "ted,te->td"> (o2,',
    ),
    "a clamp far away for many tokens": (
        "batched",
        "a = Mul (silu, u)",
        SIZES.replace("w0 = Div (top, total)", "a0 = Mul (silu, u)")
        + "ac = Clip (a0, minus_far, far)\n a = Where (crowded, ac, a0)",
    ),
}
CASES = {name: ("batched", WEIGHTS, text) for name, text in ROUTERS.items()} | EXPERTS
RUNS = ((3, 1.0), (40, 1e3), (200, 1e3), (20, 1e-4), (300, 1.0), (700, 1.0), (200, 1e4))
"""Numbers of tokens, and the size of x."""


@pytest.fixture
def changed(build, texts, normal) -> Callable[..., ir.Model]:
    """``changed(formulation, text, by, **options)``: the model of a formulation with another text in its place."""

    def make(formulation: str, text: str, by: str, **options: Any) -> ir.Model:
        shapes = {"batched": [(4, 10, 6), (4, 6, 5)], "dense": [(4, 6, 5), (4, 5, 6)]}[formulation]
        stacked = dict(zip(("up", "down"), (normal(*shape) for shape in shapes), strict=True))
        assert text in texts[formulation]
        return build(texts[formulation].replace(text, by), **stacked, **CONSTANTS, **options)

    return make


def is_raised(model: ir.Model) -> bool:
    RaiseMoE().apply(model, Report())
    return any(map(dialect.is_moec, model.graph))


@thinned("case", CASES, 2)
def test_what_ordinary_tokens_do_not_show_is_not_raised(changed, case):
    formulation, text, by = CASES[case]
    model = changed(formulation, text, by)
    plain = changed(formulation, text, text)
    differ = False
    for T, size in RUNS:
        x = (np.random.default_rng(T).normal(size=(T, 6)) * size).astype(np.float32)
        one, other = (interpreter.run(each, {"x": x}, dtype=np.float64)["y"] for each in (model, plain))
        differ |= not np.allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    assert differ, "the condition shows on some of the runs"
    assert is_raised(plain) and not is_raised(model)


@pytest.mark.parametrize("place", ["the router", "the experts"])
def test_a_rounding_by_a_large_number_is_not_raised(changed, place):
    """In float64, in which blocks are compared, adding 1.5 * 2^23 and taking it away again rounds nothing."""
    text, value, result = (WEIGHTS, "w0", "w") if place == "the router" else ("weighted = Mul (o,", "o", "o4")
    steps = f"o1 = Mul ({value}, steps)\n o2 = Add (o1, magic)\n o3 = Sub (o2, magic)\n {result} = Div (o3, steps)\n"
    by = f"w0 = Div (top, total)\n {steps}" if value == "w0" else f"{steps} weighted = Mul (o4,"
    model = changed("batched", text, by)
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    exact, rounded = (interpreter.run(model, {"x": x}, dtype=dtype)["y"] for dtype in (np.float64, None))
    assert not np.allclose(exact, rounded, atol=1e-3)
    assert not is_raised(model)


def test_every_place_of_a_fixed_number_of_tokens_is_compared(changed):
    by = "w0 = Div (top, total)\n factor = Identity (all_but_last)\n" + SCALED
    assert not is_raised(changed("batched", WEIGHTS, by, shape="64,6"))
    assert is_raised(changed("batched", WEIGHTS, WEIGHTS, shape="64,6"))


def test_the_number_of_sequences_is_no_constant(build, texts, normal):
    by = SIZES + FALLING.format(value="amount", result="factor").replace("seats", "fifty") + SCALED
    stacked = {"up": normal(4, 10, 6), "down": normal(4, 6, 5), "fifty": np.float32(50)}

    def model(weights: str) -> ir.Model:
        text = texts["batched"].replace(WEIGHTS, weights).replace("(x,", "(flat,").replace("y =", "y_flat =")
        text = f"flat = Reshape (x, rows)\n{text}\n shape = Shape (x)\n y = Reshape (y_flat, shape)"
        return build(text, shape="B,S,6", **stacked, **CONSTANTS)

    assert not is_raised(model(by))
    assert is_raised(model(WEIGHTS))


def test_the_length_of_another_input_is_no_constant(changed):
    by = "w0 = Div (top, total)\n zs = Shape (z)\n n = Gather <axis = 0> (zs, scalar_zero)\n n1 = Cast <to = 1> (n)\n"
    model = changed("batched", WEIGHTS, by + "w = Div (w0, n1)", more="float[P] z")
    assert not is_raised(model)
