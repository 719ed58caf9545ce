"""A plan is read back as it was written, and refused with the place of what is wrong in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement, linear
from moec.placing.plan import ExpertPlan, LayerPlan, parse_plan, read_plan

LAYER = LayerPlan(
    "0123456789abcdef", "a", 3, {"up": ["int4/32", "keep", "int8"]}, ((0, 2), (1, 2)), resident=((2,), ())
)
PLAN = ExpertPlan((LAYER,), ranks=2, transport="alltoall", resident=4096, method="rtn", notes={"avg": 3.5})


def test_what_is_written_is_read(tmp_path):
    for plan in (PLAN, ExpertPlan(()), ExpertPlan((LayerPlan("a", "\N{SNOWMAN}", 0),), device="cuda")):
        (tmp_path / "p").write_text(plan.text())
        assert read_plan(tmp_path / "p") == plan


def test_a_plan_has_the_placement_of_its_layers_with_slots():
    linears = LayerPlan("b", "head", 1, {"weight": ["int8"]})
    plan = dataclasses.replace(PLAN, layers=(LAYER, linears))
    assert plan.placement is not None and [layer.name for layer in plan.placement.layers] == ["a"]
    assert plan.placement.transport == "alltoall" and plan.has_formats
    alone = ExpertPlan((LayerPlan("a", "a", 3),))
    assert alone.placement is None and not alone.has_formats
    placed = alone.placed(ExpertPlacement(2, (linear("a", 3, 2),)))
    assert (placed.ranks, placed.layers[0].slots) == (2, ((0,), (1, 2)))
    with pytest.raises(MoecError, match=r"layers of \[3\] experts; it is of layers of \[4\]"):
        alone.placed(ExpertPlacement(2, (linear("a", 4, 2),)))


def with_layer(**fields: Any) -> dict[str, Any]:
    data = json.loads(PLAN.text())
    return {**data, "layers": [{**data["layers"][0], **fields}]}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(PLAN.text()).items() if name not in names}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[", "is not JSON: .*; expected a plan as moec plan writes it"),
        ("[" * 100_000, "is not JSON"),
        ([], "is a list of 0; expected an object; expected a plan"),
        ({**without("version"), "layers": []}, "version is None; expected 2, .* make the plan anew with moec plan"),
        ({"version": 1, "layers": [{"layer": "a", "name": "a", "formats": {}}]}, "version is 1; expected 2"),
        ({**without(), "layers": {}}, "layers is an object; expected a list"),
        ({**without(), "device": "cuda"}, "resident is 4096, and device is 'cuda'; experts stream on cpu alone"),
        ({**without(), "ranks": -1}, "ranks is -1; expected a whole number from 0 up"),
        ({**without(), "ranks": True}, "ranks is true"),
        ({**without(), "nodes": 3}, "2 ranks on 3 nodes; expected a multiple"),
        ({**without(), "ranks": 3}, "resident is of 2 ranks; expected 3, a list for each"),
        ({**without(), "ranks": 10**30}, "ranks is a number of too many digits"),
        (without("ranks"), "ranks is missing, and nodes or transport are about ranks"),
        (without("ranks", "transport"), r"layer 0123456789abcdef \(a\): has slots, and ranks is missing"),
        (without("resident"), "has resident experts, and resident of the plan, in bytes, is missing"),
        ({**without(), "more": 1}, "has the unknown field 'more'"),
        (
            {**without(), "layers": without()["layers"] * 3},
            "names layer 0123456789abcdef 3 times; give",
        ),
        (with_layer(more=1), r"layers\[0\] has the unknown field 'more'"),
        (with_layer(experts=4, formats={}), "placement of 'a': expert 3 has no slot; give it one on some rank"),
        (with_layer(experts=10**15, formats={}), "expert 3 has no slot"),
        (with_layer(slots=[[0, 3], [1, 2]], resident=[]), "slots have expert 3; expected experts from 0 to 2"),
        (with_layer(slots=[[0, 0], [1, 2]], resident=[]), "rank 0 has an expert in two slots"),
        (with_layer(slots=[[0, 1, 2]], resident=[]), "slots of 1 ranks, not of 2"),
        (with_layer(resident=[[2, 2], []]), r"resident\[0\] lists an expert twice; keep it once"),
        (with_layer(resident=[[1], []]), r"resident\[0\] lists expert 1; expected experts that this rank holds"),
        (with_layer(resident=[[], [9]]), r"resident\[1\] lists expert 9"),
        (with_layer(resident=[[], [], [2]]), r"resident\[2\] lists expert 2"),
        (with_layer(formats={"up": ["int8"]}), "formats.up has 1 formats for 3 experts; give one for each"),
        (with_layer(formats={"up": "int4"}), r'layers\[0\].formats.up is "int4"; expected a list'),
        (with_layer(formats={"up": [4]}), r"layers\[0\].formats.up\[0\] is 4; expected a text"),
    ],
)
def test_what_is_no_plan_is_refused(data, message, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(MoecError, match=message) as refusal:
        read_plan(path)
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the paths of all values in JSON."""
    yield path
    for key, inner in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(inner, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Copy JSON with another value at a path."""
    if not path:
        return value
    copy = data.copy()
    copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


WRONG = (
    None,
    True,
    -1,
    0,
    3,
    1 << 61,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 10_000,
    [],
    [[]],
    {},
    {"": 0},
)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(value)[:8])
def test_no_value_at_any_place_ends_with_a_traceback(value):
    data = json.loads(PLAN.text())
    refused = 0
    for path in places(data):
        text = json.dumps(changed(data, path, value))
        try:
            parse_plan(text, "p").text()
        except MoecError as error:
            refused += 1
            assert str(error).startswith("p: ") and "\n" not in str(error) and len(str(error)) < 600, path
    assert refused > 20


def test_no_part_of_a_plan_is_a_plan():
    text = PLAN.text().rstrip().encode()
    for end in range(len(text)):
        with pytest.raises(MoecError, match=r"^p: is not JSON: .*; expected a plan as moec plan writes it$"):
            parse_plan(text[:end], "p")
    assert parse_plan(text, "p") == PLAN


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe{}", PLAN.text().encode("utf-16"), b'{"a": "\\ud800"}', b'{"a":' * 5000, b"[" * 10**6, b"\0", b""],
)
def test_bytes_that_are_no_json_are_refused_in_one_line(text):
    with pytest.raises(MoecError, match=r"^p: is not JSON: [^\n]{1,300}; expected a plan") as refusal:
        parse_plan(text, "p")
    assert "\n" not in str(refusal.value)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(MoecError, match="cannot be read: No such file"):
        read_plan(tmp_path / "p")
