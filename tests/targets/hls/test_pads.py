"""Calibration data of padded sequences."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import InputError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.hls.attention.graph import find_attention
from moec.targets.hls.graph.pads import without_pads
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.target import HlsTarget

from .graphs import D, E, GraphBuilder
from .test_attention_graph import HEADS, normalized, positions_of

RIGHT = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def test_tokens_follow_themselves_in_the_place_of_pads():
    left = RIGHT[:, ::-1]
    tokens = np.array([[5, 7, 6, 0, 0], [1, 2, 3, 4, 9]])
    rolled = np.array([[0, 0, 5, 7, 6], [1, 2, 3, 4, 9]])
    whole = [[5, 7, 6, 5, 7], [1, 2, 3, 4, 9]]
    for mask, given in ((RIGHT, tokens), (left, rolled), (RIGHT.astype(bool), tokens)):
        positions = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)
        rows = given[..., None] * np.float32(0.5)
        inputs = {"mask": mask, "ids": given, "positions": positions, "rows": rows, "size": np.zeros((2, 3))}
        actual, said = without_pads(inputs, ["mask", "other"])
        assert actual["ids"].tolist() == whole
        assert actual["rows"][..., 0].tolist() == (np.array(whole) * 0.5).tolist()
        assert actual["positions"].tolist() == [[0, 1, 2, 3, 4]] * 2
        assert actual["mask"].all() and actual["mask"].dtype == mask.dtype
        assert actual["size"] is inputs["size"]
        assert said.startswith("'mask' hides 2 of 10 calibration tokens, pads of 1 of 2 sequences")


def test_ids_that_happen_to_count_are_no_positions():
    mask = np.array([[0, 0, 1, 1]])
    inputs = {
        "mask": mask,
        "ids": mask * [[0, 0, 94, 95]],
        "places": np.arange(4)[None],
        "from_0": mask * [[0, 0, 0, 1]],
    }
    actual, _ = without_pads(inputs, ["mask"])
    expected = {"ids": [[94, 95, 94, 95]], "places": [[2, 3, 4, 5]], "from_0": [[0, 1, 2, 3]]}
    assert {name: actual[name].tolist() for name in expected} == expected


def test_what_is_whole_stays_as_it_is():
    for masks, mask in ((["mask"], np.ones((2, 5))), (["mask"], np.arange(10).reshape(2, 5)), ([], RIGHT)):
        inputs = {"mask": mask, "ids": np.zeros((2, 5))}
        assert without_pads(inputs, masks) == (inputs, None)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"mask": np.array([[1, 1], [0, 0]])}, "'mask' shows no token in sequence 1"),
        ({"mask": np.array([[1, 0, 1]])}, "'mask' shows tokens with pads between them in sequence 0"),
        ({"mask": RIGHT, "other": RIGHT[:, ::-1]}, "'mask' and 'other' pad different tokens"),
    ],
)
def test_other_pads_are_refused(masks, said):
    with pytest.raises(InputError, match=said):
        without_pads(masks, list(masks))


def test_tokens_keep_their_numbers_and_a_project_is_made_of_them():
    """The mask hides keys of pads, whose tokens are large."""
    graph = GraphBuilder()
    mask = ir.Value(name="mask", shape=ir.Shape(["B", "S"]), type=ir.TensorType(ir.DataType.INT64))
    tokens = normalized(graph)
    query, key, value = (graph.dense(tokens, 12) for _ in range(3))
    shown = graph.add("Unsqueeze", graph.add("Cast", mask, to=ir.DataType.BOOL), graph.constant(np.array([1, 2])))
    causal = graph.add("LessOrEqual", positions_of(graph, [0]), positions_of(graph, [1]))
    heads = graph.add(
        "Attention", query, key, value, graph.add("And", shown, causal), q_num_heads=HEADS, kv_num_heads=HEADS
    )
    stream = graph.add("Add", graph.dense(heads, D), graph.x)
    rows = graph.rows(graph.add("LayerNormalization", stream, graph.normal(D), graph.normal(D)))
    experts = graph.moe(rows, graph.dense(rows, E), ExpertsSpec("silu", "gate_up"))
    model = graph.model(graph.add("Add", graph.like_x(experts), stream))
    model.graph.inputs.append(mask)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    x = np.random.default_rng(1).normal(size=(2, 5, D)).astype(np.float32)
    x[RIGHT == 0] = 1e4
    inputs = {"x": x, "mask": RIGHT}
    result, _ = without_pads(inputs, ["mask"])
    padded, whole = (next(iter(interpreter.run(model, one).values())) for one in (inputs, result))
    np.testing.assert_allclose(padded[RIGHT == 1], whole[RIGHT == 1], atol=1e-6)
    assert len(find_attention(model)[0]) == 1
    projects = HlsTarget.create("hls:zcu102", HlsOptions(inputs, max_tokens=5)).compile(model)
    assert "'mask' hides 2 of 10" in projects.warnings[0]
    assert all(model_output["decibels"] > 25 for model_output in projects.projects[0].report["model_outputs"].values())
