"""Models cut by layers: what crosses a cut, what each stage computes itself, and cuts that are impossible."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.compiling.compile_options import CompileOptions
from moec.compiling.layer_ranges import LayerRanges
from moec.compiling.layer_stages import StageModel, stage_models
from moec.ir.dialect import is_moec
from moec.ir.states import states_of
from moec.passes import pipeline
from moec.passes.framework.base import Report
from tests.pipelined_model import pipelined_model


def cut(model: ir.Model, stages: str, chain: str = "infer-shapes,hold-cache") -> list[StageModel]:
    pipeline.run(model, pipeline.parse(chain), Report())
    return stage_models(model, LayerRanges.parse(stages))


def names(values: object) -> list[str]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def test_a_hidden_state_crosses_and_states_stay() -> None:
    model = pipelined_model(3)
    before = names(model.graph.outputs)
    first, second = cut(model, "0,1-2")
    assert names(first.model.graph.inputs) == ["ids", "past_keys0", "past_values0"]
    assert set(names(first.model.graph.outputs)) == {"x1", "keys0", "values0"}
    assert names(second.model.graph.inputs)[0] == "ids" and names(second.model.graph.inputs)[-1] == "x1"
    assert set(names(second.model.graph.outputs)) == {"logits", "keys1", "values1", "keys2", "values2"}
    assert [state.input for state in states_of(first.model)] == ["past_keys0", "past_values0"]
    assert "words" in first.model.graph.initializers and "words" not in second.model.graph.initializers
    assert names(model.graph.outputs) == before, "the model itself stays as it is"


def test_a_value_goes_past_a_stage() -> None:
    _, second, third = cut(pipelined_model(3, passes_stages=True), "3")
    assert "h0" not in names(second.model.graph.inputs)
    assert set(names(third.model.graph.inputs)) >= {"x2", "h0"}


def test_layers_are_the_same_with_experts_on_several_ranks() -> None:
    for chain in ("infer-shapes,hold-cache", "infer-shapes,hold-cache,place-experts{ranks=2}"):
        first, second = cut(pipelined_model(3, dense=[0]), "0-0,1-2", chain)
        assert [stage.layers for stage in (first, second)] == [range(1), range(1, 3)]
        assert names(second.model.graph.inputs)[-1] == "x1"
        assert not any(node.domain == "moec" for node in first.model.graph)


def test_a_stage_expects_experts_of_its_own_layers_alone() -> None:
    stages = cut(pipelined_model(3), "0-1,2", "infer-shapes,hold-cache,stream-experts")
    first, second = ([node for node in stage.model.graph if is_moec(node, "Expect")] for stage in stages)
    assert [node.inputs[2].name for node in first] == ["down1"] and not second
    assert "down2" not in stages[0].model.graph.initializers


def test_a_constant_is_computed_by_each_stage() -> None:
    model = pipelined_model()
    (scale,) = (value for name, value in model.graph.initializers.items() if name == "scale")
    doubled = ir.node("Add", [scale, scale])
    doubled.outputs[0].name = "doubled"
    model.graph.insert_before(model.graph[0], doubled)
    for node in list(model.graph):
        if node.op_type == "RMSNormalization":
            node.replace_input_with(1, doubled.outputs[0])
    for stage in cut(model, "2"):
        assert "doubled" not in names(stage.model.graph.inputs)
        assert "doubled" in [node.outputs[0].name for node in stage.model.graph]


@pytest.mark.parametrize("op", ["Shape", "ReduceSum"])
def test_another_stage_may_ask_for_the_shape_of_a_state_alone(op: str) -> None:
    model = pipelined_model()
    (past,) = (value for value in model.graph.inputs if value.name == "past_keys0")
    node = ir.node(op, [past])
    size = node.outputs[0] if op == "Shape" else None
    model.graph.insert_before(model.graph[0], node)
    if size is None:
        shape = ir.node("Shape", [node.outputs[0]])
        model.graph.insert_after(node, shape)
        size = shape.outputs[0]
    cast = ir.node("Cast", [size], {"to": ir.DataType.FLOAT})
    total = ir.node("ReduceSum", [cast.outputs[0]])
    user = next(node for node in model.graph if node.outputs[0].name == "x2")
    shifted = ir.node("Add", [user.inputs[1], total.outputs[0]])
    for number, each in enumerate((cast, total, shifted, node)):
        each.outputs[0].name = f"new{number}"
        if each is not node:
            model.graph.insert_before(user, each)
    size.name = "size"
    user.replace_input_with(1, shifted.outputs[0])
    if op == "Shape":
        assert "past_keys0" not in names(cut(model, "2")[1].model.graph.inputs)
    else:
        with pytest.raises(UnsupportedError, match="stage 1 needs the state 'past_keys0' of another stage"):
            cut(model, "2")


def test_a_value_of_unknown_shape_does_not_cross() -> None:
    model = pipelined_model()
    with pytest.raises(UnsupportedError, match=r"'x1', which .* reads from an earlier stage, has no type and shape"):
        stage_models(model, LayerRanges.parse("2"))


def test_a_model_with_fewer_layers_is_refused() -> None:
    with pytest.raises(MoecError, match="has 2 layers, too few for 3 stages"):
        cut(pipelined_model(), "3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda:sm_80"}, "runs in one process; compile without stages"),
        ({"form": "c"}, "compile without stages, or without form"),
    ],
)
def test_stages_are_programs_of_processors(options: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        assert CompileOptions(stages="0-3,4-7", **options).layer_ranges  # type: ignore[arg-type]
    assert CompileOptions().layer_ranges is None
