"""Records are read by the annotations of their fields, or refused with file, field, actual and expected value."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal, TypedDict

import pytest

from moec.common.errors import ArtifactError, MoecError
from moec.common.records import FieldRule, Size, read_json, read_record, read_variant

EVEN = Annotated[int, FieldRule(lambda number: number % 2 == 0, "an even number")]


class Open(TypedDict):
    name: str


@dataclasses.dataclass(frozen=True)
class Inner:
    sizes: tuple[Size | str, ...]
    axis: int | None = None


@dataclasses.dataclass
class Outer:
    name: str
    share: float
    inner: list[Inner]
    by_name: dict[str, Inner]
    even: EVEN = 0
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    open: Open | None = None
    data: Any = None
    either: Inner | list[str] | None = None


CONTENT = {"name": "x", "share": 0.5, "inner": [{"sizes": [1, "n"]}], "by_name": {"k": {"sizes": [], "axis": 2}}}


def outer(**changes: Any) -> Outer:
    content = {name: value for name, value in {**CONTENT, **changes}.items() if value is not ...}
    return read_record(Outer, content, "file", "make it anew")


def test_fields_have_their_types():
    record = outer()
    assert record == Outer("x", 0.5, [Inner((1, "n"))], {"k": Inner((), 2)})
    assert (type(record.inner[0].sizes), type(outer(share=2).share)) == (tuple, float)
    assert read_record(Outer, dataclasses.asdict(record), "file", "make it anew") == record


def test_a_typed_dict_stays_a_dict_with_further_fields():
    assert outer(open={"name": "n", "more": [1]}).open == {"name": "n", "more": [1]}
    assert outer(data={"any": [{}]}).data == {"any": [{}]}


def test_a_union_takes_each_of_its_types():
    assert outer(either={"sizes": [3]}).either == Inner((3,))
    assert outer(either=["a"]).either == ["a"]
    assert outer(either=None).either is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 7}, "name is 7; expected a text"),
        ({"name": ...}, "name is missing; expected a text"),
        ({"name": ["x"] * 3}, "name is a list of 3; expected a text"),
        ({"name": {}}, "name is an object; expected a text"),
        ({"more\n": 1}, r"has the unknown field 'more\\n'"),
        ({"share": "1"}, 'share is "1"; expected a number'),
        ({"share": True}, "share is true; expected a number"),
        ({"share": 10**400}, "share is a number of too many digits; expected a number"),
        ({"flag": 1}, "flag is 1; expected true or false"),
        ({"flag": None}, "flag is null; expected true or false"),
        ({"even": 3}, "even is 3; expected an even number"),
        ({"even": 2.0}, "even is 2.0; expected an even number"),
        ({"even": 1 << 62}, "even is a number of too many digits; expected an even number"),
        ({"kind": "c"}, "kind is \"c\"; expected one of 'a', 'b'"),
        ({"kind": ["a"]}, "kind is a list of 1; expected one of 'a', 'b'"),
        ({"inner": {}}, "inner is an object; expected a list"),
        ({"inner": [{"sizes": []}, 7]}, r"inner\[1\] is 7; expected an object"),
        ({"inner": [{"sizes": [1, -1]}]}, r"inner\[0\]\.sizes\[1\] is -1; expected a whole number from 0 up"),
        (
            {"inner": [{"sizes": [None]}]},
            r"inner\[0\]\.sizes\[0\] is null; expected a whole number from 0 up or a text",
        ),
        ({"inner": [{"sizes": [], "axis": "1"}]}, r'inner\[0\]\.axis is "1"; expected a whole number or null'),
        ({"inner": [{"sizes": [], "axes": 1}]}, r"inner\[0\] has the unknown field 'axes'"),
        ({"by_name": {"k": {}}}, r"by_name\.k\.sizes is missing; expected a list"),
        ({"open": {}}, r"open\.name is missing; expected a text"),
        ({"either": {"sizes": [], "axis": 1.5}}, r"either\.axis is 1.5; expected a whole number or null"),
        ({"either": 3}, "either is 3; expected an object or a list or null"),
    ],
)
def test_other_data_is_refused_in_one_line(changes, message):
    with pytest.raises(MoecError, match=rf"^file: {message}; make it anew$"):
        outer(**changes)


def test_long_values_are_cut():
    with pytest.raises(MoecError) as caught:
        outer(share="x" * 1000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", "[" * 100_000, b"\xff", '"\\ud800"', "1" * 5000])
def test_text_that_is_not_json(text):
    with pytest.raises(ArtifactError, match=r"^file: is not JSON: .*; make it anew$"):
        read_json(Outer, text, "file", "make it anew", ArtifactError)


def test_json_is_read_as_data():
    assert read_json(Outer, json.dumps(CONTENT).encode(), "file", "make it anew") == outer()
    with pytest.raises(MoecError, match=r"^file: is a list of 0; expected an object; make it anew$"):
        read_json(Outer, "[]", "file", "make it anew")


def test_a_variant_is_of_the_kind_that_it_names():
    kinds = {"inner": Inner, "outer": Outer}
    assert read_variant(kinds, "is", {"is": "inner", "sizes": [1]}, "file", "make it anew") == Inner((1,))
    for content, message in (
        ({"sizes": [1]}, "is is null; expected one of 'inner', 'outer'"),
        ({"is": ["inner"]}, "is is a list of 1; expected one of 'inner', 'outer'"),
        ({"is": "inner"}, "sizes is missing; expected a list"),
    ):
        with pytest.raises(MoecError, match=f"^file: {message}; make it anew$"):
            read_variant(kinds, "is", content, "file", "make it anew")
