"""Plans are tried against one format for all, and give way to it where their predictions are wrong."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from moec.ir.weights.format import WeightFormat
from moec.passes.weights.bits import WeightBudget
from moec.passes.weights.judged_plan import Chosen, choose
from moec.profiles import Profile

from ..before_after import model_of
from ..profiles import rows_of, with_held_back, with_measures, write_measured
from ..stored_weights import apply

FORMS = [WeightFormat("int6", 32), WeightFormat("int4", 32), WeightFormat("int2", 32)]
TEXT = """(float[T,64] x, float[T,4] logits) => (float[T,64] y)
    <float[4,64,64] up, float[4,64,64] down, float[4,64,64] up2, float[4,64,64] down2> {
        h = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (x, logits, , up, down)
        y = moec.MoE <k = 2, activation = "relu", gate_layout = "none"> (h, logits, , up2, down2) }"""
LOGITS = np.random.default_rng(5).normal(size=(24, 4)).astype(np.float32)


def profiled(folder: pathlib.Path, *sensitivities: float, held: bool = True) -> pathlib.Path:
    """The profile of the two layers, with such sensitivities, and data held back."""
    formats = "+".join(map(str, FORMS))
    path = write_measured(folder / "p", model_of(TEXT), formats, moments=False)
    if sensitivities:
        with_measures(path, *({"sensitivity": np.full(2, sensitivity)} for sensitivity in sensitivities))
    return with_held_back(path, [{"x": rows_of(64, 24), "logits": LOGITS}], "y") if held else path


def chosen(path: pathlib.Path, average: float = 4) -> Chosen:
    return choose(model_of(TEXT), False, Profile.read(path), FORMS, WeightBudget(average), None, "rtn")


def formats_of(choice: Chosen) -> set[str]:
    return {form for plan in choice.plans for formats in plan.formats.values() for form in formats}


def test_a_plan_by_wrong_sensitivities_gives_way_to_one_format_for_all(tmp_path):
    choice = chosen(profiled(tmp_path, 1e6, 1))
    assert choice.judgement is not None and choice.judgement.uniform < choice.judgement.plan
    assert choice.judgement.taken == "int4/32"
    assert formats_of(choice) == {"int4/32"}
    assert choice.remarks[-1].endswith("int4/32 for all is taken")


def test_a_plan_that_is_better_than_one_format_is_taken(tmp_path):
    choice = chosen(profiled(tmp_path, 1, 1), 3)
    assert choice.judgement is not None and choice.judgement.plan < choice.judgement.uniform
    assert choice.judgement.taken == "plan"
    assert len(formats_of(choice)) > 1
    assert choice.remarks[-1].endswith("the plan is taken")


def test_a_budget_of_the_least_bits_leaves_nothing_to_judge(tmp_path):
    choice = chosen(profiled(tmp_path, 1, 1), 2)
    assert (formats_of(choice), choice.judgement) == ({"int2/32"}, None)
    assert choice.remarks == ["int2/32 for all is the plan with the least error"]


@pytest.mark.parametrize("sensitivities", [(), (1, 1)])
def test_what_a_profile_lacks_is_told(tmp_path, sensitivities):
    """Profiles of earlier versions hold neither."""
    choice = chosen(profiled(tmp_path, *sensitivities, held=False), 3)
    assert choice.judgement is None
    assert any("errors of all layers count alike: the profile holds no sensitivity of 2 of 2" in remark
               for remark in choice.remarks) == (not sensitivities)  # fmt: skip
    assert choice.remarks[-1] == (
        "the plan was not judged against int2/32 for all: the profile holds no data back; make it anew with 8 rows of "
        "data or more"
    )


def test_data_that_the_model_cannot_take_leaves_the_plan_and_says_so(tmp_path):
    path = profiled(tmp_path, 1, 1, held=False)
    choice = chosen(with_held_back(path, [{"x": rows_of(64, 24)}], "y"), 3)
    assert choice.judgement is None and len(formats_of(choice)) > 1
    assert "was not judged against int2/32 for all: the model takes inputs" in choice.remarks[-1]


def test_the_pass_stores_what_was_taken_and_remarks_on_it(tmp_path):
    path, model = profiled(tmp_path, 1e6, 1), model_of(TEXT)
    report = apply(model, f"assign-bits{{avg=4,profile={path},method=rtn}}")
    assert [loss.formats for loss in report.losses] == [{"up": ["int4/32"], "down": ["int4/32"]}] * 2
    assert report.remarks[0].message.endswith("int4/32 for all is taken")
