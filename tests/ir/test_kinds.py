"""The table of decision kinds: each kind, each operator of it, and runs that show it or do not."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.decisions import DECIDING, PLAIN
from moec.ir.kinds import KINDS
from moec.ir.movement import MOVEMENTS

from .test_watch import CONSTANTS, Runs

CONSTANTS |= {
    "table": np.array([1, 1, 0, 0, 0], np.float32),
    "one_axis": np.array([1], np.int64),
    "places": np.arange(5, dtype=np.float32),
    "rows": np.array([[1, 2, 50]], np.float32),
    "million": np.int64(10**16),
    "small": np.array([3], np.int64),
    "both": np.array([1, 0, 5], np.float32),
    "shape_of_two": np.array([2, 5], np.int64),
}
ZEROS, ONES = [[0.0, 0, 0]], [[1.0, 1, 1]]
FLAGS = "b = Greater (x, zero)\n f = Cast <to = 1> (b)\n "
FIRST = "i0 = ArgMax <axis = -1, keepdims = 0> (x)\n "
PICKED = (
    "p = Gather <axis = 1> (x, scalar)\n c = Unsqueeze (p, last)\n e = Equal (c, places)\n o = Cast <to = 1> (e)\n "
)
EACH = [[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]
EXAMPLES: dict[str, tuple[str, list[list[list[float]]], list[list[list[float]]], str]] = {
    "decision, on the right": ("y = Min (x, rows)", [ZEROS, [[9.0, 9, 9]]], [[[99.0, 99, 99]]], "Min"),
    "decision, on the left": ("y = Min (rows, x)", [ZEROS, [[9.0, 9, 9]]], [[[99.0, 99, 99]]], "Min"),
    "decision, in a comparison": ("y = Greater (rows, x)", [[[9.0, 9, 9]]], [[[99.0, 99, 99]], ZEROS], "Greater"),
    "decision, subtracted": (
        "d = Sub (x, rows)\n y = Relu (d)",
        [[[9.0, 9, 9]]],
        [[[99.0, 99, 99]], ZEROS],
        "Relu",
    ),
    "decision, four quotients": (
        "n = Cast <to = 7> (x)\n y = Div (n, small)",
        [[[0.0, 3, 6]]],
        [[[9.0, 3, 6]], [[0.0, 0, 0]]],
        "Div",
    ),
    "meeting, ReduceProd": (FLAGS + "y = ReduceProd (f, one_axis)", [[[1.0, 0, 1]]], [ONES, ZEROS], "ReduceProd"),
    "meeting, ReduceMin": (FLAGS + "y = ReduceMin (f, one_axis)", [[[1.0, 0, 1]]], [ONES, [[0.0, 1, 0]]], "ReduceMin"),
    "meeting, ReduceMax": (
        FLAGS + "y = ReduceMax (f, one_axis)",
        [[[1.0, 0, 1]]],
        [ZEROS, [[0.0, 1, 0]]],
        "ReduceMax",
    ),
    "meeting, Mul": (FLAGS + "g = Sub (one, f)\n h = ReduceMin (g, one_axis)\n y = Mul (f, h)", [ONES], [], "Mul"),
    "picking, behind Expand": (
        FIRST + "t = Expand (table, shape_of_two)\n y = Gather <axis = 1> (t, i0)",
        [[[9.0, 0, 0]]],
        [[[0.0, 0, 9]]],
        "Gather",
    ),
    "mixing, Mul": (PICKED + "y = Mul (o, table)", [EACH[:2]], [EACH], "Mul"),
    "mixing, MatMul": (PICKED + "y = MatMul (o, table)", [EACH[:2]], [EACH], "MatMul"),
    "mixing, Einsum": (PICKED + 'y = Einsum <equation = "tp,p->t"> (o, table)', [EACH[:2]], [EACH], "Einsum"),
    "mixing, Where": (PICKED + "y = Where (e, table, zero)", [EACH[:2]], [EACH], "Where"),
    "wrapping": ("n = NonZero (x)\n y = Mul (n, million)", [ONES], [], "Mul"),
}


def test_each_operator_is_of_a_kind_that_says_what_is_seen() -> None:
    assert not PLAIN & DECIDING.keys()
    classified = PLAIN | DECIDING.keys()
    assert all(kind.operators <= classified and kind.seen for kind in KINDS)
    assert classified == set().union(*(kind.operators for kind in KINDS))
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_each_operator_that_moves_elements_is_of_a_kind() -> None:
    assert MOVEMENTS.keys() <= PLAIN | DECIDING.keys()


def test_each_kind_that_asks_for_something_has_an_example() -> None:
    assert {kind.name for kind in KINDS} - {"formula"} == {name.partition(",")[0] for name in EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_not_shown_is_told_and_what_was_is_not(name: str) -> None:
    text, few, more, operator = EXAMPLES[name]
    runs = Runs(text)
    runs.unseen(*few)
    assert operator in {decision.node.op_type for decision in runs.watch.unseen()}
    runs.unseen(*more)
    assert (operator not in {decision.node.op_type for decision in runs.watch.unseen()}) == bool(more)
