"""Pages hold a document in parts, run moec's program alone, and replace only what moec wrote."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pytest

import moec
from moec.common.errors import MoecError
from moec.exploring.document import SCHEMA, VERSION
from moec.exploring.page import page

from .browser import opened

HOSTILE = "</script><script>alert(1)</script>\"'<img src=x onerror=alert(2)>"


def of(title: str, **sections: object) -> dict[str, object]:
    """A document of one artifact."""
    artifact = {"title": title, "target": "cpu", **sections}
    return {"schema": SCHEMA, "version": VERSION, "title": title, "artifacts": [artifact]}


def test_parts_of_a_page_are_the_sections_of_its_document():
    document = of("a", layers={"parts": [1, {"b": "é"}]}, empty=[], sweep=None)
    parts = dict(re.findall(r'id="part-(\S+?)">([^<]*)<', page(document)))
    assert {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in parts.items()} == {
        "0-title": "a",
        "0-target": "cpu",
        "0-layers": {"parts": [1, {"b": "é"}]},
    }


def test_equal_documents_are_equal_pages():
    assert page(of("a")) == page(of("a"))


def test_hostile_names_are_text(chromium, tmp_path):
    path = tmp_path / "report.html"
    level = {"level": "tir", "text": HOSTILE, "lines": [None], "absent": HOSTILE}
    text = {"levels": [level], "parents": {}, "loops": [], "buffers": [], "resources": []}
    path.write_text(page(of(HOSTILE, kernels=[{"name": HOSTILE, "computes": HOSTILE}], texts={HOSTILE: text})), "utf-8")
    with opened(chromium, path, "#kernel") as shown:
        shown.on("dialog", lambda dialog: pytest.fail(f"the page ran {dialog.message}"))
        assert HOSTILE in shown.inner_text("h1")
        assert HOSTILE in shown.inner_text("main")
        assert shown.locator("img").count() == 0


def test_the_policy_of_a_page_refuses_other_programs(chromium, report):
    add = "const script = document.createElement('script'); script.text = 'foreign = 1'; document.body.append(script)"
    with pytest.raises(AssertionError, match="Content Security Policy"), opened(chromium, report) as shown:
        shown.evaluate(f"() => {{ {add} }}")
        assert shown.evaluate("window.foreign") is None


def test_a_page_of_moec_is_replaced_and_no_other_file(char_lm, tmp_path):
    path = tmp_path / "report.html"
    moec.explore(char_lm, path)
    first = path.read_bytes()
    moec.explore(char_lm, path)
    assert path.read_bytes() == first
    path.write_text("my notes")
    with pytest.raises(MoecError, match="is a file that moec did not write"):
        moec.explore(char_lm, path)
    assert path.read_text() == "my notes"
