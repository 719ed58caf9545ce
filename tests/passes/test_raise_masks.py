from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from moec.passes.framework.base import Report

from . import before_after

RANDOM = np.random.default_rng(0)
PASSES = "fold-shapes,raise-masks,fold-shapes,remove-dead-nodes"
LOWEST = -3.4028235e38
SIZES = """before = Shape <start = 2, end = 3> (past) p = Squeeze (before)
    new = Shape <start = 2, end = 3> (q) s = Squeeze (new) both = Add (p, s)
    columns = Range (zero, both, one) count = Range (zero, s, one) position = Add (count, p)
    row = Unsqueeze (position, last) key = Identity (columns) keys = Concat <axis = 2> (past, k)
    total = Add (before, new) square = Concat <axis = 0> (new, total)"""
CONSTANTS = f"""<int64 zero = {{0}}, int64 one = {{1}}, int64 three = {{3}}, int64[1] last = {{1}},
    int64[1] start = {{0}}, int64[2] middle = {{1, 2}}, float shown = {{0.0}}, float hidden = {{{LOWEST}}},
    float infinite = {{-inf}}, float weak = {{-10000.0}}, float unit = {{1.0}}, bool never = {{0}},
    bool always = {{1}}>"""


def graph(mask: str, attention: str = "y = Attention (q, keys, keys, mask)") -> str:
    """An attention to earlier keys and new ones; ``pad`` says which keys of each batch entry are no padding."""
    return f"""(float[B,2,S,4] q, float[B,2,P,4] past, float[B,2,S,4] k, bool[B,T] pad, int64[B] at, float[S,R] bias)
        => (float[B,2,S,4] y) {CONSTANTS} {{ {SIZES} {mask} {attention} }}"""


def case(batch: int, past: int, new: int) -> dict[str, np.ndarray]:
    tensors = {name: (batch, 2, size, 4) for name, size in (("q", new), ("past", past), ("k", new))}
    pad = np.ones((batch, past + new), bool)
    pad[:, : new // 2] = False  # on the left: the first queries see no key, where there is no past
    return {
        **{name: RANDOM.standard_normal(shape, np.float32) for name, shape in tensors.items()},
        "pad": pad,
        "at": np.full(batch, past),
        "bias": RANDOM.standard_normal((new, past + new), np.float32),
    }


CASES = [case(1, 0, 1), case(2, 3, 5), case(1, 0, 7), case(2, 9, 1), case(1, 2, 0), case(0, 1, 2)]


def attention(text: str, report: Report | None = None, cases: Sequence[dict[str, np.ndarray]] = CASES) -> ir.Node:
    """The Attention of a graph after the passes, which compute the same on all cases."""
    used = before_after.model_of(text).graph.inputs
    names = {value.name for value in used}
    given = [{name: array for name, array in one.items() if name in names} for one in cases]
    model = before_after.rewrite(text, PASSES, *given, report=report)
    return next(node for node in model.graph if node.op_type == "Attention")


def operands(node: ir.Node) -> list[str]:
    """Operators that make the mask of an attention and the lengths; empty for none."""
    kinds = []
    for position in (3, 6):
        value = node.inputs[position] if len(node.inputs) > position else None
        producer = None if value is None else value.producer()
        kinds.append("" if value is None else "input" if producer is None else producer.op_type)
    return kinds


def is_causal(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("is_causal", 0))


CAUSAL = [
    "v = LessOrEqual (key, row) mask = Where (v, shown, hidden)",
    "v = LessOrEqual (key, row) mask = Where (v, shown, infinite)",
    "mask = LessOrEqual (key, row)",
    "mask = GreaterOrEqual (row, key)",
    "v = Greater (key, row) mask = Not (v)",
    "next = Add (row, one) mask = Less (key, next)",
    "d = Sub (row, key) n = Neg (one) mask = Greater (d, n)",
    "d = Sub (row, key) mask = GreaterOrEqual (d, zero)",
    "v = Greater (key, row) mask = Where (v, infinite, shown)",
    "v = Greater (key, row) f = Cast <to = 1> (v) mask = Mul (f, hidden)",
    "v = LessOrEqual (key, row) f = Cast <to = 1> (v) i = Sub (unit, f) mask = Mul (hidden, i)",
    "v = LessOrEqual (key, row) w = And (always, v) x = Or (w, never) mask = Where (x, shown, hidden)",
    "full = Expand (hidden, square) far = Add (p, one) mask = Trilu <upper = 1> (full, far)",
    "full = Expand (always, square) mask = Trilu <upper = 0> (full, p)",
    "v = LessOrEqual (key, row) a = Where (v, shown, hidden) b = Where (v, shown, infinite) mask = Add (a, b)",
    "v = LessOrEqual (key, row) f = Cast <to = 1> (v) z = Equal (f, shown) mask = Where (z, infinite, shown)",
    "v = LessOrEqual (key, row) u = Unsqueeze (v, start) w = Unsqueeze (u, start) mask = Where (w, shown, hidden)",
    "c = Transpose <perm = [1, 0]> (row) r = Transpose <perm = [1, 0]> (c) mask = LessOrEqual (key, r)",
    "r = Slice (columns, before, total, start) u = Unsqueeze (r, last) mask = LessOrEqual (key, u)",
    "r = Gather (columns, position) u = Unsqueeze (r, last) mask = LessOrEqual (key, u)",
    "w = Where (always, key, one) mask = LessOrEqual (w, row)",
    "m = Neg (one) f = Unsqueeze (m, start) j = Concat <axis = 0> (f, columns) h = Slice (j, start, total, start)"
    " n = Add (h, one) mask = LessOrEqual (n, row)",
    "same = Sub (key, key) z = CumSum (same, zero) e = Equal (z, zero) v = LessOrEqual (key, row) mask = And (v, e)",
]


@pytest.mark.parametrize("mask", CAUSAL)
def test_causal_orders_are_found(mask):
    report = Report()
    node = attention(graph(mask), report, CASES if mask == CAUSAL[0] else CASES[1:2])
    assert (is_causal(node), operands(node)) == (True, ["", "Expand"])
    assert not report.remarks


NOT_CAUSAL = [
    "mask = Less (key, row)",  # one key less: the first query may see none
    "next = Add (row, one) mask = LessOrEqual (key, next)",
    "mask = GreaterOrEqual (key, row)",  # keys from its own on
    "far = Sub (row, three) mask = Greater (key, far)",  # a window without an end
    "twice = Add (row, row) mask = LessOrEqual (key, twice)",
    "v = LessOrEqual (key, row) w = Equal (key, zero) mask = Or (v, w)",
    "v = LessOrEqual (key, row) w = Not (v) mask = Where (w, shown, infinite)",
    "a = Unsqueeze (at, middle) c = Range (zero, s, one) u = Unsqueeze (c, last) r = Add (a, u)"
    " v = LessOrEqual (key, r) mask = Unsqueeze (v, last)",  # positions of each batch entry
]
UNKNOWN = [
    "v = LessOrEqual (key, row) mask = Where (v, shown, weak)",  # too weak to hide keys
    "v = LessOrEqual (key, row) mask = Where (v, unit, hidden)",
    "v = LessOrEqual (key, row) a = Where (v, shown, infinite) mask = Add (a, bias)",
    "v = LessOrEqual (key, row) mask = Where (v, bias, infinite)",
    "mask = Identity (bias)",
]


@pytest.mark.parametrize("mask", NOT_CAUSAL)
def test_other_orders_stay(mask):
    node = attention(graph(mask))
    assert not is_causal(node)
    assert operands(node)[0] and not operands(node)[1]


@pytest.mark.parametrize("mask", UNKNOWN)
def test_masks_of_other_numbers_stay_with_a_remark(mask):
    report = Report()
    assert not is_causal(attention(graph(mask), report))
    assert "is not known to show or hide" in report.remarks[0].message


PADDING = "own = Gather <axis = 1> (pad, columns) u = Unsqueeze (own, middle) v = LessOrEqual (key, row) w = And (v, u)"
WINDOW = "far = Sub (row, three) v = LessOrEqual (key, row) n = Greater (key, far) w = And (v, n)"


@pytest.mark.parametrize("conditions", [PADDING, WINDOW])
@pytest.mark.parametrize("mask", ["mask = Identity (w)", "mask = Where (w, shown, infinite)"])
def test_other_conditions_stay_as_truth_values(conditions, mask):
    node = attention(graph(f"{conditions} {mask}"))
    rest = node.inputs[3]
    assert is_causal(node)
    assert rest is not None and rest.dtype == ir.DataType.BOOL
    assert rest.producer().op_type == ("Unsqueeze" if conditions == PADDING else "Greater")


def test_padding_hidden_by_a_finite_number_stays():
    """Queries before the first token see the mean of all values, of those after them, too."""
    report = Report()
    node = attention(graph(f"{PADDING} mask = Where (w, shown, hidden)"), report)
    assert not is_causal(node) and operands(node) == ["Where", ""]
    assert "takes the mean of all values" in report.remarks[0].message


def test_a_window_hidden_by_a_finite_number_is_raised():
    node = attention(graph(f"{WINDOW} mask = Where (w, shown, hidden)"))
    assert is_causal(node) and operands(node) == ["Greater", "Expand"]


@pytest.mark.parametrize(("limit", "is_window"), [("row", True), ("beyond", False)])
def test_a_window_without_the_own_key_is_none(limit, is_window):
    """A window of no keys leaves every query the mean of all values."""
    text = f"beyond = Add (row, one) far = Sub ({limit}, one) v = LessOrEqual (key, row) n = Greater (key, far)"
    node = attention(graph(f"{text} w = And (v, n) mask = Where (w, shown, hidden)"))
    assert is_causal(node) == is_window


def test_an_order_by_the_first_keys_needs_no_lengths():
    node = attention(graph("own = Unsqueeze (count, last) mask = LessOrEqual (key, own)"))
    assert (is_causal(node), operands(node)) == (True, ["", ""])


def test_positions_of_a_past_as_an_operand():
    text = graph(CAUSAL[0], "y, a, b = Attention (q, k, k, mask, past, past)")
    node = attention(text)
    assert (is_causal(node), operands(node)) == (True, ["", ""])


def test_the_first_keys_beside_a_past_as_an_operand_stay():
    mask = "own = Unsqueeze (count, last) v = LessOrEqual (key, own) mask = Where (v, shown, infinite)"
    assert not is_causal(attention(graph(mask, "y, a, b = Attention (q, k, k, mask, past, past)")))


LENGTHS = "used = Add (at, new) end = Unsqueeze (at, middle) u = Unsqueeze (count, last) r = Add (end, u)"


@pytest.mark.parametrize(("compared", "is_found"), [("r", True), ("row", False)])
def test_positions_of_each_batch_entry_beside_its_length(compared, is_found):
    text = f"{LENGTHS} v = LessOrEqual (key, {compared}) mask = Unsqueeze (v, last)"
    if compared == "row":
        text = f"{LENGTHS} mask = LessOrEqual (key, row)"
    node = attention(graph(text, "y = Attention (q, keys, keys, mask, , , used)"))
    assert is_causal(node) == is_found


def test_a_causal_order_that_is_already_there_leaves_the_mask():
    node = attention(
        graph(
            f"{LENGTHS} v = LessOrEqual (key, r) mask = Unsqueeze (v, last)",
            "y = Attention <is_causal = 1> (q, keys, keys, mask, , , used)",
        )
    )
    assert is_causal(node) and operands(node)[0] == ""


def test_a_mask_that_hides_nothing_goes():
    node = attention(graph("v = GreaterOrEqual (key, zero) mask = Where (v, shown, hidden)"))
    assert (is_causal(node), operands(node)) == (False, ["", ""])


def test_another_reader_keeps_the_mask():
    text = graph(CAUSAL[0], "y = Attention (q, keys, keys, mask) copy = Neg (mask)")
    text = text.replace("(float[B,2,S,4] y)", "(float[B,2,S,4] y, float[S,R] copy)")
    node = attention(text)
    assert is_causal(node) and operands(node)[0] == ""


def test_keys_that_are_an_output_with_a_size_of_its_own_name():
    text = graph(CAUSAL[0]).replace("(float[B,2,S,4] y)", "(float[B,2,S,4] y, float[B,2,R,4] keys)")
    node = attention(text)
    assert (is_causal(node), operands(node)) == (True, ["", "Expand"])


def test_tables_of_constants():
    triangle = ", ".join("1" if key <= query else "0" for query in range(3) for key in range(3))
    text = """(float[B,2,3,4] q) => (float[B,2,3,4] y) <bool[3,3] table = {%s}> {
        y = Attention (q, q, q, table) }"""
    for numbers, is_found in ((triangle, True), (triangle.replace("0, 1", "1, 1", 1), False)):
        model = before_after.rewrite(text % numbers, PASSES, {"q": CASES[1]["q"][:, :, :3]})
        node = next(iter(model.graph))
        assert (is_causal(node), operands(node)[0]) == (is_found, "" if is_found else "input")
