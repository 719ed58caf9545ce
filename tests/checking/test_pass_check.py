"""--verify-each: a pass that changes the graph's results is named, with the output and the inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import moec
from moec.checking.pass_check import NAME, PassCheck
from moec.common.errors import DefectError
from moec.compiling.compiler import optimize
from moec.frontend.onnx.importer import import_model
from moec.passes import PASSES, pipeline
from moec.passes.framework.base import Loss, Report

from ..text_models import model_of

NUMBERS = {
    "limit": np.float32(50),
    "double": np.float32(2),
    "huge": np.float32(1e30),
    "nearly": np.float32(1.2),
    "many": np.float32(1500),
}


def built(text: str = "y = Min (x, limit)", inputs: str = "float[N,4] x") -> ir.Model:
    return import_model(model_of(text, NUMBERS, inputs))


@dataclasses.dataclass(frozen=True)
class Rewrites:
    """A pass that replaces the model's graph."""

    name: ClassVar[str] = "rewrites"
    exactness: ClassVar[str] = "exact"
    text: str = "y = Identity (x)"
    losses: tuple[float, ...] = ()

    def apply(self, model: ir.Model, report: Report) -> bool:
        model.graph = built(self.text).graph
        report.losses.extend(Loss(self.name, "y", {}, "float32", loss, loss) for loss in self.losses)
        return True


class Loses(Rewrites):
    name: ClassVar[str] = "loses"
    exactness: ClassVar[str] = "lossy"


def checked(model: ir.Model, *passes: Rewrites) -> Report:
    report = Report()
    pipeline.run(model, passes, report, verify_each=True, on_pass=PassCheck(model, report).after)
    return report


def test_a_clamp_that_a_pass_drops_is_found_where_inputs_reach_it() -> None:
    with pytest.raises(DefectError, match=r"after rewrites: output 'y' on x\[7, 4\] up to \de\+0\d differs by"):
        checked(built(), Rewrites())


SIZES = "sizes: up to N = 300 were compared"


def test_a_pass_that_computes_the_same_passes() -> None:
    report = checked(built(), Rewrites("m = Mul (x, double)\n h = Div (m, double)\n y = Min (h, limit)"))
    assert [remark.message for remark in report.remarks] == ["decisions: 2 of 2 sides were taken (100%)", SIZES]


def test_each_pass_is_compared_with_what_was_before_it() -> None:
    with pytest.raises(DefectError, match="after loses"):
        checked(built(), Rewrites("y = Min (limit, x)"), Loses("y = Neg (x)"))


def test_what_no_input_reaches_is_listed_and_not_found() -> None:
    report = checked(built("y = Min (x, huge)"), Rewrites())
    assert [remark.message for remark in report.remarks] == [
        "decisions: 1 of 2 sides were taken (50%)",
        "  never taken: Min node 'y': input 0 > input 1",
        SIZES,
    ]


def test_another_shape_and_a_graph_that_no_longer_runs_are_found() -> None:
    with pytest.raises(DefectError, match=r"output 'y' on x\[1, 4\] up to .* is float64\[\]; expected float64\[1, 4\]"):
        checked(built(), Rewrites("y = ReduceSum <keepdims = 0> (x)"))
    with pytest.raises(DefectError, match=r"the model cannot be run on x\[1, 4\] .* any more: node 'y' \(MatMul\)"):
        checked(built(), Rewrites("y = MatMul (x, x)"))


def test_half_of_the_elements_may_lose_what_a_lossy_pass_says() -> None:
    checked(built("y = Identity (x)"), Loses("y = Mul (x, nearly)", losses=(0.1, 0.1)))
    with pytest.raises(DefectError, match=r"in half of its elements; the losses add up to 1\.0e-01"):
        checked(built("y = Identity (x)"), Loses("y = Mul (x, nearly)", losses=(0.1,)))
    with pytest.raises(DefectError, match=r"the losses add up to 0\.0e"):
        checked(built("y = Identity (x)"), Loses("y = Mul (x, nearly)"))


def test_what_is_no_number_stays_none() -> None:
    checked(built("y = Log (x)"), Rewrites("z = Identity (x)\n y = Log (z)"))
    with pytest.raises(DefectError):
        checked(built("y = Log (x)"), Rewrites("a = Abs (x)\n y = Log (a)"))


def test_more_tokens_than_any_number_of_the_graph_are_tried() -> None:
    text = """n = Shape <start = 0, end = 1> (x)
    tokens = Cast <to = 1> (n)
    over = Greater (tokens, many)
    factor = Cast <to = 1> (over)
    y = Mul (x, factor)"""
    with pytest.raises(DefectError, match=r"x\[1501, 4\]"):
        checked(built(text), Rewrites("y = Sub (x, x)"))


def test_a_slow_model_is_compared_on_less_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr("moec.checking.pass_check.MOST_SECONDS", -1)
    (remark,) = [remark for remark in checked(built(), Rewrites()).remarks if remark.severity == "warning"]
    assert remark.message.startswith("compared on 1 of ")


@pytest.fixture
def broken_simplify(monkeypatch) -> None:
    monkeypatch.setitem(PASSES, "simplify", lambda: Rewrites)


@pytest.fixture
def file(tmp_path) -> Callable[[], object]:
    onnx.save(ir.serde.serialize_model(built()), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_compile_and_opt_check_passes_where_they_are_asked_to(file, broken_simplify) -> None:
    for call in (moec.compile, optimize):
        with pytest.raises(DefectError, match="after rewrites: output 'y'"):
            call(file, passes="simplify", verify_each=True)
    assert "Identity" in optimize(file, "simplify")[0]


def test_what_was_seen_is_reported(file) -> None:
    _, remarks = optimize(file, "simplify", verify_each=True)
    reported = ["decisions: 2 of 2 sides were taken (100%)", SIZES]
    assert [(remark.pass_name, remark.message) for remark in remarks] == [(NAME, line) for line in reported]
