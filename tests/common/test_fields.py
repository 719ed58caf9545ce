"""Fields of JSON objects: read by type, or refused with the file, the object and the field."""

from __future__ import annotations

from typing import Any

import pytest

from moec.common.errors import MoecError
from moec.common.fields import Fields

CONTENT = {"n": 3, "t": "x", "l": ["a"], "o": {"k": "v"}, "e": [{"n": 1}], "none": None}


def fields(**changes: Any) -> Fields:
    return Fields({**CONTENT, **changes}, "file", "make it anew")


def test_what_is_there():
    found = fields()
    assert (found.whole("n"), found.whole("m", default=7), found.text("t"), found.texts("l")) == (3, 7, "x", ["a"])
    assert (found.texts_by_name("o"), found.objects("e")[0].whole("n")) == ({"k": "v"}, 1)
    assert (found.optional_text("none"), found.optional_whole("none"), found.optional_whole("n")) == (None, None, 3)
    found.check_keys(set(CONTENT))


@pytest.mark.parametrize("value", [True, -1, 1.5, "3", None, [3], 10**400, 1 << 62])
def test_no_whole_number(value):
    with pytest.raises(MoecError, match=r"^file: n is .*, expected a whole number from 0 on; make it anew$"):
        fields(n=value).whole("n")


def test_what_is_wrong():
    for ask, message in (
        (lambda: fields(t=7).text("t"), "file: t is 7, expected a text"),
        (lambda: fields().text("u"), "file: u is missing, expected a text"),
        (lambda: fields(l=["a", 1]).texts("l"), "file: l is a list of 2, expected a list of texts"),
        (lambda: fields(o={"k": 1}).texts_by_name("o"), "file: o is an object, expected an object of texts"),
        (lambda: fields(e=[{}, 7]).objects("e"), "file: e 1: is 7, expected an object"),
        (lambda: fields(e=[{}]).objects("e")[0].whole("n"), "file: e 0: n is missing, expected a whole number"),
        (lambda: fields().check_keys({"n"}), "file: has the unknown field 't'"),
        (lambda: Fields([], "file", "make it anew"), r"file: is a list of 0, expected an object"),
    ):
        with pytest.raises(MoecError, match=message):
            ask()
