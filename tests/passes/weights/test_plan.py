"""Plans of formats: written, read, and refused when they are edited wrongly."""

from __future__ import annotations

import json

import pytest

from moec.common.errors import MoecError
from moec.passes.weights.plan import LayerPlan, plan_text, read_plan

PLAN = LayerPlan("0123456789abcdef", "layer", {"up": ["int4/32", "keep"], "down": ["int8", "int8"]})


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "p").write_text(plan_text([PLAN], {"avg": 3.5}))
    assert read_plan(tmp_path / "p") == {PLAN.layer: PLAN}
    assert json.loads((tmp_path / "p").read_text())["avg"] == 3.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "[", "is not JSON"),
        (lambda data: "[" * 100_000, "is not JSON"),
        (lambda data: [data], "is a list of 1; expected an object; expected a plan as moec plan writes it"),
        (lambda data: {**data, "layers": {}}, "layers is an object; expected a list"),
        (lambda data: {**data, "version": 2}, "version 2; this moec reads version 1"),
        (lambda data: {**data, "layers": [*data["layers"], *data["layers"]]}, "names a layer twice"),
        (lambda data: {**data, "layers": [{"layer": "a"}]}, "layer 0: name is missing; expected a text"),
        (lambda data: {**data, "layers": [{**data["layers"][0], "more": 1}]}, "layer 0: has the unknown field 'more'"),
        (
            lambda data: {**data, "layers": [{**data["layers"][0], "formats": {"up": "int4"}}]},
            'layer 0: formats.up is "int4"; expected a list',
        ),
        (
            lambda data: {**data, "layers": [{**data["layers"][0], "formats": {"up": [4]}}]},
            r"layer 0: formats.up\[0\] is 4; expected a text",
        ),
    ],
)
def test_what_is_no_plan_is_refused(change, message, tmp_path):
    changed = change(json.loads(plan_text([PLAN], {})))
    (tmp_path / "p").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(MoecError, match=message):
        read_plan(tmp_path / "p")


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(MoecError, match="cannot be read: No such file"):
        read_plan(tmp_path / "p")
