"""A plan of this model is recorded, with the numbers of its layers; plans of others are refused."""

from __future__ import annotations

import dataclasses
import pathlib

import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.compiling.compile_options import CompileOptions
from moec.ir.weight_operands import stored_weights
from moec.passes import pipeline
from moec.passes.assign_bits import AssignBits
from moec.passes.follow_plan import FollowPlan
from moec.passes.framework.base import Report
from moec.passes.place_experts import PlaceExperts
from moec.passes.stream_experts import StreamExperts
from moec.placing.metadata import PLAN_KEY, layer_of, layers_of, plan_of
from moec.placing.placement import ExpertPlacement, linear
from moec.placing.plan import ExpertPlan, LayerPlan

from .. import plans
from .before_after import model_of

TEXT = """(float[T,4] x, float[T,3] a) => (float[T,4] z)
    <float[3,3,4] up, float[3,4,3] down, float[3,3,4] other_up, float[3,4,3] other_down> {
    y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, a, , up, down)
    z = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (y, a, , other_up, other_down)
}"""
SLOTS = [((0, 1), (2,)), ((2, 0), (1,))]


def followed(plan: ExpertPlan, path: pathlib.Path, more: str = "", text: str = TEXT) -> ir.Model:
    path.write_text(plan.text())
    model = model_of(text)
    pipeline.run(model, pipeline.parse(f"infer-shapes,follow-plan{{plan={path}}}{more}"), Report())
    return model


def test_layers_are_found_by_their_weights(tmp_path):
    plan = plans.plan_of(model_of(TEXT), SLOTS)
    renamed = [dataclasses.replace(layer, name="edited", formats={"up": ["int8"] * 3}) for layer in plan.layers]
    model = followed(dataclasses.replace(plan, layers=tuple(reversed(renamed)), method="rtn"), tmp_path / "p")
    assert [layer_of(node) for node in layers_of(model)] == [0, 1]
    assert plan_of(model) == dataclasses.replace(plan, method="rtn")  # formats were for assign-bits
    assert [node.op_type for node in model.graph] == ["MoE", "MoE"]


TWINS = TEXT.replace("(y, a, , other_up, other_down)", "(y, a, , up, down)")


def test_layers_with_the_same_weights_are_found_by_their_order(tmp_path):
    plan = plans.plan_of(model_of(TWINS), SLOTS)
    first, second = plan.layers
    assert second.layer == f"{first.layer}#2"
    model = followed(dataclasses.replace(plan, layers=(second, first)), tmp_path / "p", text=TWINS)
    assert plan_of(model) == plan and [layer.slots for layer in plan.layers] == SLOTS
    with pytest.raises(MoecError, match=rf"names layer {first.layer} 2 times; give each layer once"):
        followed(dataclasses.replace(plan, layers=(first, first)), tmp_path / "p", text=TWINS)
    with pytest.raises(MoecError, match=rf"has no layer {first.layer}#2, which is z of this model"):
        followed(dataclasses.replace(plan, layers=(first,)), tmp_path / "p", text=TWINS)
    third = dataclasses.replace(second, layer=f"{first.layer}#3")
    with pytest.raises(MoecError, match=rf"layer {first.layer}#3 \(z\) is not in this model; remove it"):
        followed(dataclasses.replace(plan, layers=(first, second, third)), tmp_path / "p", text=TWINS)


def test_layers_with_the_same_weights_have_formats_of_their_own(tmp_path):
    plan = plans.plan_of(model_of(TWINS))
    formats = [["int8", "keep", "int8"], ["keep", "int4", "keep"]]
    layers = [dataclasses.replace(layer, formats={"up": own}) for layer, own in zip(plan.layers, formats, strict=True)]
    rounding = f",assign-bits{{plan={tmp_path / 'p'},method=rtn}}"
    model = followed(dataclasses.replace(plan, layers=tuple(layers)), tmp_path / "p", rounding, TWINS)
    stored = [list(map(str, stored_weights(node)["up"].formats)) for node in layers_of(model)]
    assert stored == [["int8", "float32", "int8"], ["float32", "int4", "float32"]]


def test_later_passes_follow_the_plan(tmp_path):
    plan = dataclasses.replace(plans.plan_of(model_of(TEXT), SLOTS), transport="allgather", resident=4096)
    more = ",quantize-experts{format=int8},stream-experts,place-experts{ranks=3}"
    assert plan_of(followed(plan, tmp_path / "p", more)) == plan
    free = followed(plans.plan_of(model_of(TEXT)), tmp_path / "p", ",place-experts{ranks=3}")
    assert plan_of(free).ranks == 3


def of_layer(plan: ExpertPlan, **fields: object) -> ExpertPlan:
    first, *others = plan.layers
    return dataclasses.replace(plan, layers=(dataclasses.replace(first, **fields), *others))  # type: ignore[arg-type]


STRAY = LayerPlan("f" * 16, "stray", 1, slots=((0,), ()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: of_layer(plan, layer="e" * 16),
            r"has no layer \w{16}, which is y of this model",
        ),
        (
            lambda plan: of_layer(plan, slots=()),
            r"layer \w+ \(y\): slots is missing; expected",
        ),
        (
            lambda plan: of_layer(plan, experts=4, slots=((0, 1), (2, 3))),
            r"layer \w+ \(y\): experts is 4; the model has 3",
        ),
        (
            lambda plan: dataclasses.replace(plan, layers=(*plan.layers, STRAY)),
            r"layer f{16} \(stray\) is not in this model; remove it",
        ),
    ],
)
def test_plans_of_other_models_are_refused(change, message, tmp_path):
    with pytest.raises(MoecError, match=message) as refusal:
        followed(change(plans.plan_of(model_of(TEXT), SLOTS)), tmp_path / "p")
    assert f"{tmp_path / 'p'}: " in str(refusal.value)


def test_a_model_with_a_plan_of_other_layers_is_refused():
    model = model_of(TEXT)
    model.metadata_props[PLAN_KEY] = ExpertPlan(()).text()
    with pytest.raises(MoecError, match=r"metadata moec\.plan is of 0 layers; expected 2; remove it from the model"):
        pipeline.run(model, pipeline.parse("infer-shapes,stream-experts"), Report())


def chain_of(plan: ExpertPlan, path: pathlib.Path, **options: object) -> list[type]:
    path.write_text(plan.text())
    return [type(step) for step in CompileOptions(passes="O0", plan=path, **options).pipeline(None)][-4:]  # type: ignore[arg-type]


def test_a_compilation_follows_the_tiers_of_a_plan(tmp_path):
    layer = LayerPlan("a", "a", 2)
    formats = dataclasses.replace(layer, formats={"up": ["int8", "keep"]})
    everything = ExpertPlan((formats,), resident=99).placed(ExpertPlacement(2, (linear("a", 2, 2),)))
    assert chain_of(everything, tmp_path / "p") == [FollowPlan, AssignBits, StreamExperts, PlaceExperts]
    assert chain_of(ExpertPlan((formats,)), tmp_path / "p")[-1] is AssignBits
    assert FollowPlan not in chain_of(ExpertPlan((formats,)), tmp_path / "p")
    assert chain_of(ExpertPlan((layer,), resident=99), tmp_path / "p")[-2:] == [FollowPlan, StreamExperts]


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (ExpertPlan(()), {"resident": "1GiB"}, "a plan says resident, ranks, nodes and replicas; leave these out"),
        (ExpertPlan(()), {"ranks": 2}, "a plan says resident, ranks, nodes and replicas"),
        (ExpertPlan((), device="cuda"), {}, "device is 'cuda', and the target is 'cpu'; compile with --target cuda"),
        (ExpertPlan(()), {"target": "cuda:sm_80"}, "device is 'cpu', and the target is 'cuda:sm_80'"),
        (ExpertPlan((LayerPlan("a", "a", 1, {"up": ["int8"]}),)), {"experts": "int4"}, "has formats of experts"),
        (ExpertPlan((), resident=1), {"form": "c"}, "--form c maps all weights"),
    ],
)
def test_options_that_a_plan_has_are_refused(plan, options, message, tmp_path):
    (tmp_path / "p").write_text(plan.text())
    with pytest.raises(MoecError, match=message):
        chosen = CompileOptions(passes="O0", plan=tmp_path / "p", **options)
        assert chosen.c_form(tmp_path / "a") or chosen.pipeline(None)
