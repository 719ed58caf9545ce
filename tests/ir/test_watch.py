"""A watch says which sides of a graph's decisions were not taken."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.decisions import DECIDING, PLAIN
from moec.ir.facts import Facts, facts_of
from moec.ir.interpreter import Evaluator
from moec.ir.sides import Takes
from moec.ir.watch import Watch
from moec.passes import pipeline

from ..text_models import model_of

CONSTANTS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "ten": np.float32(10),
    "limits": np.array([1, 2, 50], np.float32),
    "open": np.array([1, 2, np.inf], np.float32),
    "three": np.array([3], np.int64),
    "last": np.array([-1], np.int64),
    "start": np.array([0], np.int64),
    "first": np.array([0], np.int64),
    "two": np.int64(2),
    "scalar": np.int64(0),
    "k": np.array([1], np.int64),
    "diagonal": np.int64(3),
}


class Runs:
    """A graph that computes y from x [T,3], under a watch."""

    def __init__(self, text: str) -> None:
        model = ir.from_proto(model_of(text, CONSTANTS, "float[T,3] x"))
        pipeline.run(model, pipeline.parse("infer-shapes"))
        self.x = model.graph.inputs[0]
        self._evaluator = Evaluator(list(model.graph), [self.x], list(model.graph.outputs), {"": 24})
        self.watch = Watch(model.graph, facts_of(list(model.graph), Initializers()))

    def unseen(self, *runs: list[list[float]]) -> list[str]:
        """The conditions that are unseen after runs on these x."""
        for x in runs:
            self._evaluator.run({self.x: np.array(x, np.float32).reshape(-1, 3)}, self.watch)
        return [str(decision.condition) for decision in self.watch.unseen()]


class Initializers:
    """All constants of a model."""

    def has(self, value: ir.Value) -> bool:
        return value.const_value is not None

    def array(self, value: ir.Value, most: int) -> np.ndarray | None:
        return None if value.const_value is None or value.const_value.size > most else value.const_value.numpy()


LOW, HIGH = [[-99.0, -99, -99]], [[99.0, 99, 99]]
TWO_SIDED = {
    "y = Clip (x, zero, ten)": 2,
    "y = Relu (x)": 2,
    "y = Abs (x)": 2,
    "y = Sign (x)": 2,
    "y = LeakyRelu (x)": 2,
    "y = Max (x, ten)": 2,
    "y = Min (x, ten)": 2,
    "y = Less (x, ten)": 2,
    "y = LessOrEqual (x, ten)": 2,
    "y = Greater (x, ten)": 2,
    "y = ThresholdedRelu <alpha = 2.0> (x)": 2,
    "y = Cast <to = 9> (z)\n z = Relu (x)": 4,
    "b = Greater (x, ten)\n y = Where (b, x, ten)": 4,
    "b = Greater (x, ten)\n y = Not (b)": 4,
    "y = HardSwish (x)": 4,
}


@pytest.mark.parametrize("text", TWO_SIDED)
def test_each_side_has_to_be_taken(text: str) -> None:
    text = "\n".join(sorted(text.split("\n"), key=lambda line: line.startswith("y")))
    assert len(Runs(text).unseen()) == TWO_SIDED[text if text in TWO_SIDED else "\n".join(reversed(text.split("\n")))]
    one_side = Runs(text).unseen(LOW)
    assert one_side and one_side != Runs(text).unseen(HIGH)
    assert not Runs(text).unseen(LOW, HIGH)


def test_equality_alone_is_neither_side_of_a_strict_comparison() -> None:
    assert Runs("y = LessOrEqual (x, ten)").unseen([[10, 10, 10]]) == ["input 0 > input 1"]
    assert Runs("y = Less (x, ten)").unseen([[10, 10, 10]]) == ["input 0 < input 1"]


def test_every_bound_of_several_has_to_be_reached() -> None:
    assert Runs("y = Min (x, limits)").unseen([[9, 9, 9]], LOW) == ["input 0 > input 1"]
    assert not Runs("y = Min (x, limits)").unseen([[9, 9, 99]], LOW)


def test_several_numbers_may_stand_on_the_left() -> None:
    """A bound of one number asks for each side once; a bound of several asks for each number."""
    assert Runs("y = Min (limits, ten)").unseen() == [
        "input 0 < input 1",
        "input 0 > input 1",
        "it is each of the 3 numbers that it can be",
    ]
    assert not Runs("y = Min (limits, ten)").unseen(LOW)
    assert Runs("y = Min (limits, x)").unseen(LOW) == ["input 0 < input 1"]
    assert not Runs("y = Min (limits, x)").unseen(LOW, HIGH)


def test_what_no_number_reaches_is_not_asked_for() -> None:
    assert not Runs("y = Min (x, open)").unseen([[9, 9, 9]], LOW)
    assert not Runs("s = Sigmoid (x)\n y = Min (s, ten)").unseen(LOW)
    assert not Runs("s = Sigmoid (x)\n b = Less (s, ten)\n y = Where (b, x, s)").unseen(LOW)


def test_a_selection_has_to_select_differently() -> None:
    text = "v, y = TopK <axis = -1> (x, k)"
    assert Runs(text).unseen([[3, 2, 1]], [[9, 0, 0]]) == ["another first place"]
    assert not Runs(text).unseen([[3, 2, 1]], [[1, 2, 3]])
    assert not Runs("y = ReduceMax (x, last)").unseen([[3, 2, 1]], [[1, 2, 3]])
    assert Runs("y = ReduceMax (x, last)").unseen([[3, 2, 1]]) == ["another place of the extreme"]


def test_bounds_of_a_slice_lie_inside_and_outside() -> None:
    text = "y = Slice (x, start, three, first)"
    assert Runs(text).unseen([[0, 0, 0]]) and Runs(text).unseen([[0, 0, 0]] * 9)
    assert not Runs(text).unseen([[0, 0, 0]], [[0, 0, 0]] * 9)
    assert not Runs("y = Slice (x, start, three, last)").unseen([[0, 0, 0]]), "along an axis whose size is known"


def test_rounding_is_never_seen_whole() -> None:
    assert not Runs("y = Round (x)").unseen([[1, 2, 3]])
    assert Runs("y = Round (x)").unseen([[1, 2, 3]], [[1.5, 2, 3]]) == ["it rounds to whole numbers"]


def test_the_size_of_the_data_decides_what_a_triangle_leaves_out() -> None:
    text = "t = Transpose (x)\n m = MatMul (x, t)\n y = Trilu <upper = 1> (m, diagonal)"
    assert Runs(text).unseen([[1, 1, 1]] * 3) and not Runs(text).unseen([[1, 1, 1]] * 5)


def test_an_operator_that_nobody_knows_is_never_seen() -> None:
    assert Runs("y = Hardmax (x)").unseen(LOW, HIGH) == ["what it decides is not known"]


def branches(then: str) -> str:
    """Both branches of an If; the condition is true where the first number is larger than ten."""
    return f"""f = Gather <axis = 1> (x, scalar)
    m = ReduceMax <keepdims = 0> (f)
    b = Greater (m, ten)
    y = If (b) <then_branch = g () => (t) {{ t = {then} }}, else_branch = h () => (e) {{ e = Mul (x, ten) }}>"""


def test_branches_that_decide_nothing_have_been_seen_when_both_were_run() -> None:
    assert Runs(branches("Neg (x)")).unseen([[0, 0, 0], [1, 0, 0]]) != []
    assert not Runs(branches("Neg (x)")).unseen(
        [[0, 0, 0], [1, 0, 0]], [[9, 9, 9], [99, 0, 0]], [[99, 0, 0], [1, 0, 0]]
    )


@pytest.mark.parametrize(
    "then",
    ["Min (x, ten)", "If (b) <then_branch = i () => (u) { u = Relu (x) }, else_branch = j () => (w) { w = Neg (x) }>"],
)
def test_branches_that_decide_are_never_seen_whole(then: str) -> None:
    runs = ([[0, 0, 0], [1, 0, 0]], [[9, 9, 9], [99, 0, 0]], [[99, 0, 0], [1, 0, 0]])
    assert Runs(branches(then)).unseen(*runs) == ["its branches decide, too, and are not watched"]


def test_a_fork_keeps_what_it_sees_to_itself() -> None:
    runs = Runs("y = Relu (x)")
    runs.unseen(LOW)
    fork, own = runs.watch.fork(), runs.watch
    runs.watch = fork
    assert not runs.unseen(HIGH)
    assert len(own.unseen()) == 1


def test_no_operator_both_decides_and_does_not() -> None:
    assert not PLAIN & DECIDING.keys()


def test_integers_beyond_a_narrower_type_have_to_be_met() -> None:
    text = "n = Cast <to = 7> (x)\n y = Cast <to = 3> (n)"
    assert Runs(text).unseen([[1, 2, 3]]) == ["an integer outside of -128 to 127"]
    assert not Runs(text).unseen([[1, 2, 300]])
    assert not Runs("n = ArgMax <axis = -1> (x)\n y = Cast <to = 3> (n)").unseen([[1, 2, 3]], [[3, 2, 1]])


def test_each_number_of_a_result_has_to_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ir.node("Neg", [ir.Value(name="flag")])
    monkeypatch.setattr("moec.ir.watch.conditions", lambda node, facts: (Takes(np.array([0.0, 1.0])),))
    watch = Watch([node], Facts())
    reported = [str(decision.condition) for decision in watch.unseen()]
    assert reported == ["it is each of the 2 numbers that it can be"]
    watch(node, [np.array([False])], [np.array([0.0])])
    assert watch.unseen()
    watch(node, [np.array([True])], [np.array([1.0])])
    assert not watch.unseen()


def test_a_side_is_seen_by_the_run_that_took_it_or_excluded_by_bounds() -> None:
    runs = Runs("a = Abs (x)\n b = Relu (a)\n y = Relu (x)")
    for name, x in (("low", LOW), ("high", HIGH)):
        fork = runs.watch.fork()
        own, runs.watch = runs.watch, fork
        runs.unseen(x)
        runs.watch = own
        own.adopt(fork, name)
    reasons = {
        (side.node.outputs[0].name, str(side.condition)): side.run or side.excluded for side in runs.watch.watched()
    }
    assert reasons[("y", "input 0 < 0.0")] == "low"
    assert reasons[("y", "input 0 > 0.0")] == "high"
    assert reasons[("b", "input 0 < 0.0")] == "input 0 is 0 or more"


def test_a_side_of_no_run_has_no_reason() -> None:
    runs = Runs("y = Relu (x)")
    assert {(side.run, side.excluded) for side in runs.watch.watched()} == {("", "")}


def test_a_side_of_a_bound_that_is_absent_is_excluded() -> None:
    runs = Runs('y = Clip (x, "", ten)')
    excluded = {str(side.condition): side.excluded for side in runs.watch.watched()}
    assert excluded == {"input 0 < input 1": "it has no input 1", "input 0 > input 2": ""}
