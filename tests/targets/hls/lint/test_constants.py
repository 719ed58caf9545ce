"""Constants and lists in C++, found without a compiler."""

from __future__ import annotations

import pytest

from moec.simulators.hls.cpp import Source

from .constants import DeclaredConstants
from .text import code, split_list


def test_blanked_text_keeps_its_positions():
    text = 'int a; // b\n#define C \\\n 1\nf("d", /* e */ 2);'
    assert code(text) == 'int a;     \n           \n  \nf(" ",         2);'
    assert '"d"' in code(text, strings=True)


def test_lists_are_parted_outside_of_brackets_only():
    assert split_list("a, pair<int, int> b, f(1, 2), c[3]") == ["a", "pair<int, int> b", "f(1, 2)", "c[3]"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("BEAT / LANES", 32),
        ("block::LANES * 2 + 1", 33),
        ("sizes<block>::LANES", 16),
        ("(WIDE ? 1 : 3)", 1),
        ("LANES > 8 ? LANES : 8", 16),
        ("1 << 4", 16),
        ("LANES / 0", None),
        ("TWICE", None),
        ("unknown", None),
        ("ROUND", None),
        ("f(3)", None),
    ],
)
def test_constants(expression, value):
    text = """
    const int BEAT = 512;
    struct block { static const int LANES = 16, UNUSED = 2; static const bool WIDE = true; };
    template <class T> struct sizes { static const int LANES = T::LANES; };
    const int TWICE = 1; void f() { const int TWICE = 2; }
    const int ROUND = OTHER; const int OTHER = ROUND;
    """
    constants = DeclaredConstants([Source("text.h", text)])
    assert constants.value(expression) == value
    assert constants.within("const int TWICE = 2;").value("TWICE") == 2
