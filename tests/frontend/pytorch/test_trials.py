"""Guards that remain after sizes of 0 and 1 that they exclude were tried, or not."""

from __future__ import annotations

import pytest

from moec.frontend.pytorch.trials import let_in


def agreeing_on(*accepted):
    """The module does not run on zero tokens."""
    return lambda sizes: None if sizes.get("seq") == 0 else dict(sizes) in accepted


@pytest.mark.parametrize(
    "guard, accepted, left, said",
    [
        ("2 <= seq", [{"seq": 1}], ["1 <= seq"], ["seq = 1"]),
        ("2 <= seq", [], ["2 <= seq"], []),
        ("rows * seq != 1", [{"rows": 1, "seq": 1}], [], ["rows = 1 and seq = 1"]),
        ("rows * seq != 1", [], ["rows * seq != 1"], []),
        ("past + seq != 1", [{"past": 0, "seq": 1}], [], ["past = 0 and seq = 1"]),
        ("a + b != 1", [{"a": 0, "b": 1}, {"a": 1, "b": 0}], [], ["a = 1 and b = 0", "a = 0 and b = 1"]),
        ("a + b != 1", [{"a": 0, "b": 1}], ["(a + b != 1) or (a == 0 and b == 1)"], ["a = 0 and b = 1"]),
        ("past + seq != 1", [{"past": 1, "seq": 1}], ["past + seq != 1"], []),
        ("past + seq >= 2", [{"past": 0, "seq": 1}], [], ["past = 0 and seq = 1"]),
        ("16 < 16 * past + 16 * seq", [{"past": 0, "seq": 1}], [], ["past = 0 and seq = 1"]),
        ("a + b > 1", [{"a": 0, "b": 1}], ["(a + b > 1) or (a == 0 and b == 1)"], ["a = 0 and b = 1"]),
        ("3 <= a + b", [{"a": 0, "b": 1}], ["(3 <= a + b) or (a == 0 and b == 1)"], ["a = 0 and b = 1"]),
        ("a + b + c + d + e > 1", [{"a": 1, "b": 0, "c": 0, "d": 0, "e": 0}], ["a + b + c + d + e > 1"], []),
        ("past + seq >= 2", [], ["past + seq >= 2"], []),
        ("past + seq <= 2", [{"past": 0, "seq": 1}], ["past + seq <= 2"], []),
        ("1 + past != 1", [{"past": 0}, {"past": 1}], ["1 + past != 1"], []),
    ],
)
def test_what_agrees_is_let_in(guard, accepted, left, said):
    kept, let = let_in([guard], agreeing_on(*accepted))
    assert kept == left
    assert set(said) <= set(let)
    assert bool(let) == (kept != [guard])
