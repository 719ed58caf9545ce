from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, VerificationError
from moec.ir.text import parse_model
from moec.passes import PASSES, pipeline
from moec.passes.framework.base import Report

TEXT = '<ir_version: 10, opset_import: ["" : 24]>\nagraph (float[T] x) => (float[T] y) { a = Identity (x) y = Neg (a) }'


@dataclasses.dataclass(frozen=True)
class Sample:
    name: ClassVar[str] = "sample"
    exactness: ClassVar[str] = "exact"
    group: int
    format: Literal["int4", "int8"] = "int4"
    symmetric: bool = False
    limit: float | None = None

    def apply(self, model: ir.Model, report: Report) -> bool:
        report.note(self.name, "y", "seen")
        return False


@dataclasses.dataclass(frozen=True)
class Breaks:
    name: ClassVar[str] = "breaks"
    exactness: ClassVar[str] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        model.graph.append(ir.node("Route", [model.graph.inputs[0]], domain="moec", num_outputs=2))
        return True


@pytest.fixture(autouse=True)
def more_passes(monkeypatch):
    monkeypatch.setitem(PASSES, "sample", lambda: Sample)
    monkeypatch.setitem(PASSES, "breaks", lambda: Breaks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "simplify",
        "simplify,fold-shapes",
        "sample{group=32}",
        "sample{group=8,format=int8,symmetric=true,limit=0.5}",
    ],
)
def test_a_pipeline_prints_as_it_was_written(text):
    assert pipeline.print_pipeline(pipeline.parse(text)) == text


def test_spaces_defaults_and_none():
    assert pipeline.parse(" sample { group = 4 , limit = none } , simplify ")[0] == Sample(4)
    assert pipeline.print_pipeline((Sample(4, format="int4"),)) == "sample{group=4}"


@pytest.mark.parametrize(
    "text, message",
    [
        ("simplfy", "unknown pass 'simplfy'; did you mean 'simplify'"),
        ("zzzzzz", "unknown pass 'zzzzzz'; known: "),
        ("sample{group=1,fromat=int4}", "no option 'fromat'; did you mean 'format'"),
        ("simplify{x=1}", r"simplify has no option 'x'.*options: none"),
        ("sample{group=many}", "is 'many'; expected a value of type int"),
        ("sample{group=1,format=int3}", "is 'int3'; expected one of int4, int8"),
        ("sample{group=1,symmetric=maybe}", "expected true or false"),
        ("sample{group}", "option 'group' has no value"),
        ("sample{group=1,group=2}", "given twice"),
        ("sample", "needs the option group"),
        ("low-rank-experts{rank=4}", r"needs the option profile; .*\{profile=VALUE\} or give --profile FILE"),
        ("simplify,", "a pass is expected after the last comma"),
        ("simplify,,simplify", "cannot read"),
        ("simplify fold-shapes", "cannot read"),
        ("sample{group=1", "cannot read"),
        ("O1{limit=2}", "takes no options"),
    ],
)
def test_what_cannot_be_read_is_explained_in_one_line(text, message):
    with pytest.raises(MoecError, match=message) as caught:
        pipeline.parse(text)
    assert "\n" not in str(caught.value)


def test_a_profile_goes_to_the_passes_that_take_one():
    text = "O1,low-rank-experts{rank=4},simplify,quantize-experts{format=int4,method=gptq}"
    passes = pipeline.parse(text, "a, b.moeprof")
    given = {one.name: one.profile for one in passes if hasattr(one, "profile")}
    assert given == {"low-rank-experts": "a, b.moeprof", "quantize-experts": "a, b.moeprof"}
    assert pipeline.take_profile(passes, "a, b.moeprof")


@pytest.mark.parametrize("own, expected", [("mine", "mine"), ("none", None)])
def test_a_profile_that_a_pass_names_stays(own, expected):
    (only,) = passes = pipeline.parse(f"quantize-experts{{format=int4,profile={own}}}", "shared")
    assert only.profile == expected
    assert not pipeline.take_profile(passes, "shared")


def test_a_level_is_a_name_for_a_pipeline():
    names = [one.name for one in pipeline.parse("O0,sample{group=1}")]
    assert names == [*pipeline.LEVELS["O0"].split(","), "sample"]


def test_every_name_of_every_level_is_registered():
    for text in pipeline.LEVELS.values():
        assert {one.name for one in pipeline.parse(text)} <= PASSES.keys()


def test_only_the_last_level_rounds():
    passes = {level: pipeline.parse(level) for level in pipeline.LEVELS}
    lossy = {level: [one.name for one in chain if one.exactness == "lossy"] for level, chain in passes.items()}
    assert lossy == {"O0": [], "O1": [], "O2": [], "O3": ["round-activations", "cast-states"]}


def test_run_reports_each_pass_and_prints_after_those_asked_for(capsys):
    model, report, seen = parse_model(TEXT), Report(), []
    passes = pipeline.parse("sample{group=1},simplify")
    changed = pipeline.run(
        model, passes, report, verify_each=True, print_after=["simplify"], on_pass=lambda *args: seen.append(args)
    )
    assert changed
    assert [(one.name, did) for one, _, did in seen] == [("sample", False), ("simplify", True)]
    assert all(seconds >= 0 for _, seconds, _ in seen)
    assert [remark.message for remark in report.remarks] == ["seen"]
    printed = capsys.readouterr().out
    assert printed.count("# after") == 1 and "Neg (x)" in printed


def test_verify_each_names_the_pass_that_broke_the_model():
    with pytest.raises(VerificationError, match="after breaks"):
        pipeline.run(parse_model(TEXT), pipeline.parse("simplify,breaks"), verify_each=True)
