"""Values that a block computes only from sizes are scanned at more sizes than the trials have."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import dialect
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising import trials
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.size_scan import LARGEST, SizedGraph, SizeScan

from ...text_models import model_of

CONSTANTS = {
    "slope": np.float32(0.05),
    "less": np.float32(0.0486),
    "middle": np.float32(50),
    "far": np.float32(4000),
    "unit": np.float32(1),
}
RESULT = "weighted = Mul (o,"
AMOUNT = """xs = Shape (x)
    n = Gather (xs, scalar_zero)
    amount = Cast <to = 1> (n)
    q = Mul (amount, slope)
    q1 = Sub (q, {middle})
    switch = Sigmoid (q1)
    f = Sub (unit, switch)
    scaled = Mul (o, f)
    weighted = Mul (scaled,"""
SLOW = AMOUNT.replace("slope)", "less)")
"""A switch that changes the result by less than the tolerance at the first larger size, and completely beyond it."""
NOTHING = AMOUNT.replace("switch = Sigmoid (q1)", "switch = Sub (q1, q1)")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (AMOUNT.format(middle="middle"), "differs by"),
        (SLOW.format(middle="middle"), "differs by"),
        (AMOUNT.format(middle="far"), "it is another number than in all trials where T = "),
        (NOTHING.format(middle="middle"), None),
    ],
)
def test_a_smooth_switch_on_the_number_of_tokens_is_never_raised(build, texts, normal, text, told) -> None:
    assert RESULT in texts["batched"]
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    model, report = build(texts["batched"].replace(RESULT, text), **weights, **CONSTANTS), Report()
    RaiseMoE().apply(model, report)
    assert any(dialect.is_moec(node) for node in model.graph) == (told is None)
    assert told is None or any(told in remark.message for remark in report.remarks)


CANCELLED = """xs = Shape (x)
    n = Gather (xs, scalar_zero)
    amount = Cast <to = 1> (n)
    more = Mul (o, amount)
    scaled = Div (more, amount)
    weighted = Mul (scaled,"""


def test_sizes_that_were_assumed_are_told(build, texts, normal) -> None:
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    for text, begins in (
        (CANCELLED, ["assumed: Cast node 'amount', made of sizes, goes on as before beyond T = "]),
        (RESULT, []),
    ):
        model, report = build(texts["batched"].replace(RESULT, text), **weights, **CONSTANTS), Report()
        assert RaiseMoE().apply(model, report) and len(report.remarks) == len(begins)
        assert all(remark.message.startswith(begin) for remark, begin in zip(report.remarks, begins, strict=True))


def test_layouts_that_are_too_large_to_be_tried_are_told(build, texts, normal, monkeypatch) -> None:
    weights = {"up": normal(4, 6, 5), "down": normal(4, 5, 6)}
    flat = "x = Reshape (pictures, rows)\n" + texts["dense"].replace("y = Einsum", "y2 = Einsum")
    text = flat.replace("(x, ", "(flat, ").replace("x = Reshape (pictures", "flat = Reshape (x")
    text += "\n xs = Shape (x)\n y = Reshape (y2, xs)"
    for share, told in ((0, ["A = 3, B = 4", "A = 4, B = 3"]), (trials.LAYOUT_SHARE, [])):
        monkeypatch.setattr(trials, "LAYOUT_SHARE", share)
        model, report = build(text, "A,B,6", **weights), Report()
        assert RaiseMoE().apply(model, report)
        assert [remark.message.partition(" agree")[0] for remark in report.remarks] == [
            f"assumed: sizes {one}" for one in told
        ]


NUMBERS = {
    "zero": np.int64(0),
    "one": np.int64(1),
    "unit": np.float32(1),
    "single": np.ones((1, 1), np.float32),
    "hundred": np.float32(100),
    "tables": np.arange(12, dtype=np.float32).reshape(3, 4),
}
COUNTED = "s = Shape (x)\n n = Gather (s, zero)\n f = Cast <to = 1> (n)\n "


def sized(text: str, numbers=(), inputs: str = "float[T,4] x", **options) -> SizedGraph:
    """A graph by itself, whose symbols are those of its inputs."""
    model = ir.from_proto(model_of(text, NUMBERS, inputs))
    shapes = [value.shape or () for value in model.graph.inputs]
    symbols = dict.fromkeys(str(size) for shape in shapes for size in shape if not isinstance(size, int))
    return SizedGraph(list(model.graph), list(symbols), DataFlow(model.graph), lambda: numbers, **options)


def named(nodes: list[ir.Node]) -> list[str | None]:
    return [node.outputs[0].name for node in nodes]


def test_what_sizes_make_is_scanned_where_its_numbers_are_used() -> None:
    """A value is left out if only its size is used, or if it depends on constants or on data alone."""
    text = COUNTED + "e = Expand (single, s)\n r = Expand (f, s)\n q = Add (x, r)\n p = Mul (q, e)\n y = Mul (p, f)"
    assert named(SizeScan.of(sized(text)).nodes) == ["n", "f", "r"]
    assert not SizeScan.of(sized("c = Add (unit, hundred)\n y = Mul (x, c)")).nodes
    table = COUNTED + "e = Expand (tables, s)\n y = Mul (x, e)"
    assert named(SizeScan.of(sized(table, inputs="float[T,3,4] x")).nodes) == ["e"]


def test_parts_of_shapes_are_those_parts() -> None:
    text = "s = Shape <start = 1, end = -1> (x)\n f = Cast <to = 1> (s)\n y = Mul (x, f)"
    scan = SizeScan.of(sized(text, inputs="float[A,B,1] x"))
    assert scan.varying([{"A": 2, "B": 3}, {"A": 9, "B": 3}]) == []
    assert named(scan.varying([{"A": 2, "B": 3}, {"A": 2, "B": 4}])) == ["f"]


def test_a_number_that_was_the_same_in_all_trials_is_told_at_the_size_where_it_differs_most() -> None:
    text = COUNTED + "m = Max (f, hundred)\n y = Mul (x, m)"
    scan = SizeScan.of(sized(text, numbers=(140,)))
    assert named(scan.varying([{"T": 5}, {"T": 7}])) == ["n", "f"] and not scan.varying([{"T": 7}, {"T": 7}])
    within, beyond = scan.differing([{"T": 5}, {"T": 7}], lambda layout: layout["T"] <= 150)
    assert named([within[0], beyond[0]]) == ["m", "m"]
    assert within[1] == {"T": 141} and LARGEST / 1.5 < beyond[1]["T"] <= LARGEST
    assert str(scan.unseen(*beyond)).startswith("Max node 'm': it is another number than in all trials where T = ")


def test_a_number_that_stays_or_ends_in_what_trials_reach_is_not_told_beyond() -> None:
    """The minimum is 1 at every size; a number of at most 100 stays below a trial of 150."""
    stays = SizeScan.of(sized(COUNTED + "m = Min (f, unit)\n y = Mul (x, m)"))
    assert not list(stays.differing([{"T": 5}, {"T": 7}], lambda layout: False))
    ends = SizeScan.of(sized(COUNTED + "d = Sub (f, hundred)\n e = Sigmoid (d)\n y = Mul (x, e)"))
    ((node, layout),) = ends.differing([{"T": 5}, {"T": 7}], lambda layout: layout["T"] <= 1000)
    assert named([node]) == ["e"] and 100 < layout["T"] <= 1000
    ((node, layout),) = ends.differing([{"T": 5}, {"T": 7}], lambda layout: False)
    assert named([node]) == ["e"] and layout["T"] > 100


def test_values_without_elements_say_nothing() -> None:
    scan = SizeScan.of(sized(COUNTED + "r = Range (one, n, one)\n t = Cast <to = 1> (r)\n y = Mul (x, t)"))
    assert named(scan.varying([{"T": 1}, {"T": 2}])) == ["n"]
    assert named([node for node, _ in scan.differing([{"T": 1}, {"T": 2}], lambda layout: True)]) == ["r", "t"]


def scanned(**options) -> list[dict[str, int]]:
    """The sizes that are looked at."""
    scan = SizeScan.of(sized(COUNTED + "y = Mul (x, f)", **options))
    return [dict(layout) for layout, _ in scan._scan()]


def test_sizes_beside_the_numbers_of_a_graph_and_growing_ones_are_looked_at() -> None:
    plain, beside = ({layout["T"] for layout in scanned(numbers=numbers)} for numbers in ((), (100, 7)))
    growing = [int(4 * 1.5**step) for step in range(31)]
    assert sorted(plain) == growing and max(growing) <= LARGEST
    assert beside - plain == {1, 2, 7, 8, 14, 15, 49, 50, 100, 101, 700, 701, 10000, 10001} - plain
    assert not {layout["T"] for layout in scanned(numbers=(0, LARGEST))} - plain - {1, 2}


def test_each_size_grows_alone_and_all_grow_together() -> None:
    actual = scanned(inputs="float[A,B] x")
    assert {"A": 4, "B": 1} in actual and {"A": 1, "B": 4} in actual and {"A": 4, "B": 4} in actual
    assert not [layout for layout in actual if 1 not in layout.values() and layout["A"] != layout["B"]]


def test_sizes_that_a_graph_does_not_take_are_left_out() -> None:
    actual = scanned(inputs="float[A,B] x", allows=lambda layout: layout["B"] == 1)
    assert actual and {layout["B"] for layout in actual} == {1} and max(layout["A"] for layout in actual) > 1000


def test_sizes_end_where_the_largest_value_would_take_too_much() -> None:
    text = COUNTED + "z = Expand (f, s)\n y = Mul (x, z)"
    for limit in (1 << 12, 1 << 16):
        graph = sized(text, most_bytes=limit)
        largest = max(layout["T"] for layout, _ in SizeScan.of(graph)._scan())
        assert math.isqrt(limit) // 32 < largest <= limit // (4 * 8)
        twice = dataclasses.replace(graph, most_bytes=4 * limit)
        assert max(layout["T"] for layout, _ in SizeScan.of(twice)._scan()) > largest


def test_sizes_that_follow_from_others_are_known() -> None:
    text = "s = Shape (w)\n n = Gather (s, zero)\n f = Cast <to = 1> (n)\n y = Mul (x, f)"
    graph = sized(text, inputs="float[T,4] x, float[U,4] w")
    free = dataclasses.replace(graph, symbols=["T"])
    assert not SizeScan.of(free).nodes
    scan = SizeScan.of(dataclasses.replace(free, completed=lambda layout: {**layout, "U": layout["T"] + 1}))
    assert named(scan.nodes) == ["n", "f"] and len(scan.varying([{"T": 2}, {"T": 3}])) == 2
