"""The schema of the explorer's document: it describes what moec writes, in whole, and refuses other documents."""

from __future__ import annotations

import functools
import importlib.resources
import json

import pytest

from moec.exploring.document import SCHEMA, SECTIONS, VERSION

from .large import large_document

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")


@functools.cache
def schema():
    return json.loads((importlib.resources.files("moec.exploring") / "page" / "schema.json").read_text("utf-8"))


def faults(content) -> list[str]:
    """Places in a document that the schema refuses."""
    found = jsonschema.Draft202012Validator(schema()).iter_errors(json.loads(json.dumps(content)))
    return [f"{each.json_path}: {each.message}" for each in found]


def with_texts_of(content, names):
    """A copy with the texts of some kernels, because their lines are nearly all of a document."""
    artifact = content["artifacts"][0]
    texts = {name: artifact["texts"][name] for name in names}
    return json.loads(json.dumps({**content, "artifacts": [{**artifact, "texts": texts}]}))


def test_the_schema_is_one_and_has_the_documents_name_and_version():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["schema"] == {"const": SCHEMA}
    assert schema()["properties"]["version"] == {"const": VERSION}


def test_a_document_of_an_artifact_fits(char_document):
    assert faults(with_texts_of(char_document, ["moe_route", "moe_combine"])) == []


@pytest.mark.nightly
def test_a_document_with_all_texts_fits(char_document):
    assert faults(char_document) == []


def test_every_section_and_every_field_of_an_artifact_is_described(char_document):
    described = schema()["$defs"]["artifact"]["properties"]
    assert SECTIONS.keys() - described.keys() == set()
    assert char_document["artifacts"][0].keys() - described.keys() == set()


def test_experts_with_a_profile_fit():
    content = large_document(layers=2, experts=4)["artifacts"][0]
    for name in ("experts", "pairs", "layers"):
        section = {"$defs": schema()["$defs"], **schema()["$defs"]["artifact"]["properties"][name]}
        assert [each.message for each in jsonschema.Draft202012Validator(section).iter_errors(content[name])] == []


def set_at(content, path, value):
    *parents, last = path
    functools.reduce(lambda part, key: part[key], parents, content)[last] = value


FIRST = ("artifacts", 0)
WRONG = [
    (("version",), 2),
    ((*FIRST, "timeline"), {"cases": [{"title": "Prompt"}]}),
    (("other",), {}),
    ((*FIRST, "kernels", 0, "calls"), -1),
    ((*FIRST, "layers", "parts", 0, "weight_bytes"), "12 kB"),
    ((*FIRST, "layers", "parts", 0, "kind"), "another"),
    ((*FIRST, "experts", "layers", 0, "experts", 0, "bits"), "4"),
    ((*FIRST, "passes", "stages", 0, "edits"), [["0", 1, []]]),
    ((*FIRST, "pairs"), [[["1"]]]),
    ((*FIRST, "texts"), {"gemm": {"name": "gemm"}}),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "")
def test_a_wrong_document_is_refused(char_document, path, value):
    content = with_texts_of(char_document, [])
    set_at(content, path, value)
    assert len(faults(content)) >= 1
