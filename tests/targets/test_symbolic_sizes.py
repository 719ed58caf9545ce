"""Arithmetic on sizes that are numbers or names."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import tirx

import moec
from moec.common.budgets import SIZE_OPERATORS
from moec.targets.tvm.sizes.symbolic import Sizes, StaticValue, combined, operators_in

from .conftest import parse


@pytest.fixture
def sizes() -> Sizes:
    return Sizes()


def test_a_size_may_be_zero_but_not_negative(sizes):
    tokens = sizes.variable("T")
    assert sizes.equal(tokens, -1) is False
    assert sizes.equal(tokens, 0) is None
    assert sizes.equal(tokens, 1) is None
    assert sizes.less(tokens, 0) is False


def test_what_is_less(sizes):
    tokens = sizes.variable("T")
    assert sizes.less(tokens, tokens + 1) is True
    assert sizes.less(tokens, tokens) is False
    assert sizes.less(tokens + 1, tokens) is False
    assert sizes.less(tokens, 7) is None


def test_equality_of_expressions(sizes):
    tokens, experts = sizes.variable("T"), sizes.variable("E")
    assert sizes.equal(tokens * 2 + tokens, tokens * 3) is True
    assert sizes.equal(tokens + 1, tokens) is False
    assert sizes.equal(tokens, experts) is None


def test_quotient_cancels_before_it_divides(sizes):
    batch, tokens = sizes.variable("B"), sizes.variable("T")
    assert sizes.quotient([batch, tokens, 64], [batch, tokens, 4]) == 16
    assert sizes.equal(sizes.quotient([batch, tokens, 64], [64]), batch * tokens)
    assert sizes.quotient([0, 64], [64]) == 0


def test_a_quotient_whose_divisor_may_be_none_is_what_it_is_for_others(sizes):
    batch, tokens = sizes.variable("B"), sizes.variable("T")
    assert sizes.equal(combined(sizes, "Div", "int64", batch * tokens * 8, batch * 4), tokens * 2) is True
    assert combined(sizes, "Div", "int64", tokens, sizes.integer("n")) is None
    assert combined(sizes, "Div", "int64", tokens - 1, batch) is None
    assert combined(sizes, "Mod", "int64", tokens, batch) is None


@pytest.mark.parametrize(("size", "expected"), [(-3, 0), (2, 2), (9, 5)])
def test_clamp_of_numbers(sizes, size, expected):
    assert sizes.clamp(size, 0, 5) == expected


def test_clamp_of_a_name_keeps_what_cannot_be_decided(sizes):
    tokens = sizes.variable("T")
    assert sizes.at_least(tokens, 0).same_as(tokens)
    assert isinstance(sizes.at_most(tokens, 5), tirx.Min)


def test_names_are_unique(sizes):
    assert {sizes.variable("T").name, sizes.variable("T").name} == {"T", "T_2"}


def test_known_values_have_numbers_unless_one_is_symbolic(sizes):
    assert StaticValue.of([1, 2]).numbers.tolist() == [1, 2]
    assert StaticValue.of([1, sizes.variable("T")]).numbers is None


def test_known_elements_are_numbers_of_python(sizes):
    """A number of numpy's has a type of its own, which TVM would take for the element's."""
    for elements in (np.int8(-7), np.array(-7), [np.int64(-7)], np.array([np.int64(-7)], object), np.bool_(True)):
        assert {type(element) for element in StaticValue.of(elements).elements.flat} <= {int, bool}
    mixed = np.array([sizes.variable("T"), np.int16(3)], object)
    assert StaticValue.of(mixed).elements[0] is mixed[0]


def nested(sizes: Sizes, depth: int):
    """A size that is chosen from others, as often as that."""
    size = tokens = sizes.variable("T")
    for limit in range(depth):
        size = sizes.simplify(tirx.Select(tokens < limit + 2, tirx.min(size, limit + 1), size - 1))
    return size


def test_a_size_beyond_the_budget_gets_a_name_once(sizes):
    named = []
    with sizes.naming(lambda size: named.append(size) or sizes.named_like(size)):
        first = nested(sizes, 40)
        operators = max(map(operators_in, [first, *named]))
    assert named and operators <= 2 * SIZE_OPERATORS.limit + 4
    with sizes.naming(lambda _: pytest.fail("what is equal has a name already")):
        assert sizes.simplify(named[0]) is not None


def test_a_size_within_the_budget_stays_what_it_is(sizes):
    with sizes.naming(lambda _: pytest.fail("no name is needed")):
        assert operators_in(nested(sizes, 2)) > 0


def test_what_can_be_negative_is_not_named_as_a_size(sizes):
    tokens = sizes.variable("T")
    assert sizes.less(sizes.named_like(tokens * 2), 0) is False
    assert sizes.less(sizes.named_like(tokens - 5), 0) is None


@pytest.mark.nightly
def test_a_window_of_windows_runs():
    """Each broadcast of two sizes may be either, and each slice is cut to what there is."""
    nodes = " ".join(f"s{n} = Slice(a{n}, low, high) t{n} = Mul(s{n}, b) a{n + 1} = Add(t{n}, s{n})" for n in range(2))
    text = f"""g (float[N] x, float[M] b, int64[1] low, int64[1] high) => (float[K] y) {{
        a0 = Add(x, b) {nodes} y = Neg(a2) }}"""
    model = moec.compile(parse(text))
    x, b = np.arange(5, dtype=np.float32), np.array([2], np.float32)
    (y,) = model.run({"x": x, "b": b, "low": np.array([1]), "high": np.array([-1])}).values()
    expected = x + b
    for _ in range(2):
        expected = expected[1:-1] * b + expected[1:-1]
    np.testing.assert_array_equal(y, -expected)
    assert any(SIZE_OPERATORS.step in remark["message"] for remark in model.describe()["remarks"])
