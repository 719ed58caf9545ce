"""The language of guards: its meaning, and text that it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import InputError
from moec.common.guards import LONGEST, bound_names, holds, parse_guard, parse_size, size_names, solve
from moec.common.specs import TensorSpec
from moec.runtime.inputs import InputCheck


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("s <= 16", 16, 17),
        ("2 <= s <= 16", 2, 1),
        ("s % 8 == 0", 24, 20),
        ("s != 1", 0, 1),
        ("s // 8 * 8 == s and s > 0", 8, 0),
        ("s == 3 or s == 5", 5, 4),
        ("max(s, 4) - min(s, 4) < 2", 5, 6),
        ("-2 * s >= -10", 5, 6),
        ("64 % s == 0", 16, 0),
    ],
)
def test_what_guards_say(text, inside, outside):
    guard = parse_guard(text)
    assert guard.names == ("s",)
    assert holds(guard, {"s": inside}) and not holds(guard, {"s": outside})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s <=",
        "s",
        "s + 1",
        "True",
        "s == 'a'",
        "s == 1.5",
        "s ** 9 > 0",
        "s / 2 == 1",
        "s << 99 > 0",
        "not s > 1",
        "s in (1, 2)",
        "abs(s) > 1",
        "max(s) > 1",
        "max(s, key=s) > 1",
        "s.real > 1",
        "s[0] > 1",
        "(lambda: 1)() > 0",
        "__import__('os').system('true') == 0",
        "(s := 3) > 1",
        "[s for s in s] > 1",
        "1 < " + "-" * 300 + "s",
        "s > 0 " * LONGEST,
        "(" * 500 + "s" + ")" * 500 + " > 1",
    ],
)
def test_what_is_no_guard(text):
    with pytest.raises(ValueError):
        parse_guard(text)


def test_sizes_are_arithmetic_or_one_name():
    assert parse_size("past + new")({"past": 3, "new": 4}) == 7
    assert size_names("past + new") == ("past", "new") and size_names("batch size") == ("batch size",)
    assert size_names(3) == ()


def test_computed_sizes_are_solved_for_one_name():
    sizes = {"8*c": 24}
    assert solve(parse_size("8*c"), sizes) and sizes["c"] == 3
    assert not solve(parse_size("8*c"), {"8*c": 20})
    assert not solve(parse_size("c + 3"), {"c + 3": 2})
    assert not solve(parse_size("a + b"), {"a + b": 5, "a": 2, "b": 2})


def test_computed_sizes_that_cannot_be_solved_are_left_to_the_program():
    assert solve(parse_size("a + b"), {"a + b": 5})
    assert solve(parse_size("c // 8"), {"c // 8": 5})
    assert solve(parse_size("a // b"), {"a // b": 5, "a": 2, "b": 0})


def test_bound_names():
    assert bound_names([("a", "a + b", 3), ("8*c", "d + e", "f // 2")]) == {"a", "b", "c"}


SPECS = [TensorSpec("x", "float32", ("b", "s")), TensorSpec("mask", "bool", ("b", "p + s"))]


def checked(x, mask, guards=()):
    return InputCheck(SPECS, guards=guards)({"x": np.zeros(x, np.float32), "mask": np.zeros(mask, np.bool_)})


def test_inputs_inside_the_guards_are_taken():
    assert len(checked((2, 3), (2, 8), ["s <= 3", "b*s == 6", "p == 5"])) == 2


@pytest.mark.parametrize(
    ("x", "mask", "guard", "message"),
    [
        ((2, 4), (2, 8), "s <= 3", r"with s <= 3 only, and cannot run where s = 4 \(axis 1 of input 'x'\)$"),
        ((2, 3), (2, 8), "b*s < 6", r"b = 2 \(axis 0 of input 'x'\), s = 3 \(axis 1 of input 'x'\)$"),
        ((2, 3), (2, 9), "p != 6", r"p = 6 \(axis 1 of input 'mask'\)$"),
        ((2, 3), (3, 8), "s <= 3", r"'mask' has size 3 on axis 0 \(b\); expected 2, which b is in input 'x'$"),
        (
            (2, 3),
            (2, 2),
            "s <= 3",
            r"'mask' has size 2 on axis 1; expected p \+ s where s = 3 \(axis 1 of input 'x'\)$",
        ),
    ],
)
def test_inputs_outside_are_refused(x, mask, guard, message):
    with pytest.raises(InputError, match=message):
        checked(x, mask, [guard])


def test_a_size_of_symbols():
    """Comparing symbols gives no bool."""
    size = parse_size("max(past, total, 1)", {"max": "larger({}, {})".format})
    assert str(size({name: name for name in size.names})) == "larger(larger(past, total), 1)"
