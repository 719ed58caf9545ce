"""Metadata on the origins of a layer's experts."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import ORIGIN_KEY
from moec.ir.origins import Origins, origins_of, set_origins


def test_a_node_without_metadata_has_all_its_experts():
    assert origins_of(ir.Node("moec", "Experts", []), 3) == Origins(((0,), (1,), (2,)))


def test_experts_are_followed_through_several_steps():
    origins = Origins(((0,), (1,), (2,), (3,), (4,)))
    dropped = origins.regrouped([[0], [1], [3], [4]], {2: "first: dead"})
    joined = dropped.regrouped([[2, 0], [3]], {1: "second: zero"})
    assert joined == Origins(((0, 3), (4,)), {2: "first: dead", 1: "second: zero"})
    assert joined.regrouped([[1]], {0: "third"}).removed == {
        2: "first: dead",
        1: "second: zero",
        0: "third",
        3: "third",
    }


def test_what_is_written_is_read_back():
    node, origins = ir.Node("moec", "Experts", []), Origins(((0,), (1, 5)), {11: "x: why", 7: "y: why"})
    set_origins(node, origins)
    assert node.metadata_props[ORIGIN_KEY] == ('{"experts": [[0], [1, 5]], "removed": {"7": "y: why", "11": "x: why"}}')
    assert origins_of(node, 2) == origins


def test_why_an_expert_became_part_of_another_is_written_too():
    node = ir.Node("moec", "Experts", [])
    joined = origins_of(node, 3).regrouped([[0, 2]], {1: "x: gone", 2: "y: alike"})
    assert joined == Origins(((0, 2),), {1: "x: gone"}, {2: "y: alike"})
    set_origins(node, joined)
    assert origins_of(node, 1) == joined


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100000,
        "[]",
        {"experts": [[0], [1]]},
        {"experts": [[0]], "removed": {}},
        {"experts": [[0], [-1]], "removed": {}},
        {"experts": [[0], [True]], "removed": {}},
        {"experts": [[0], 1], "removed": {}},
        {"experts": [[0], [1]], "removed": []},
        {"experts": [[0], [1]], "removed": {"x": "why"}},
        {"experts": [[0], [1]], "removed": {"9" * 5000: "why"}},
        {"experts": [[0], [1]], "removed": {"2": 3}},
        {"experts": [[0], [1]], "removed": {}, "more": 1},
        {"experts": [[0], [1]], "removed": {}, "joined": {"x": "why"}},
    ],
)
def test_other_metadata_is_an_error_of_one_line(content):
    node = ir.Node("moec", "Experts", [], name="layer")
    node.metadata_props[ORIGIN_KEY] = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(MoecError, match=r"^node layer: metadata moec.origin: .*; remove it from the model$"):
        origins_of(node, 2)
