"""Arithmetic on sizes that are numbers or names."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import tirx

from moec.targets.tvm.symbolic import Known, Sizes, combined


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
    assert Known.of([1, 2]).numbers.tolist() == [1, 2]
    assert Known.of([1, sizes.variable("T")]).numbers is None


def test_known_elements_are_numbers_of_python(sizes):
    """A number of numpy's has a type of its own, which TVM would take for the element's."""
    for elements in (np.int8(-7), np.array(-7), [np.int64(-7)], np.array([np.int64(-7)], object), np.bool_(True)):
        assert {type(element) for element in Known.of(elements).elements.flat} <= {int, bool}
    mixed = np.array([sizes.variable("T"), np.int16(3)], object)
    assert Known.of(mixed).elements[0] is mixed[0]
