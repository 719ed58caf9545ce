"""The page of the explorer: a document, the program that shows it and its style in one file of HTML."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from moec.common.seals import write_sealed

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="moec">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{digest}'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="app"><noscript>This report needs JavaScript. It reads no other file and no network.</noscript></div>
"""
_DIRECTIONS = dict.fromkeys(
    map(ord, "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"), "\ufffd"
)
_REPORT = "report"
_HEAD_KEYS = ("schema", "version", "title")


def write_page(document: dict[str, Any], path: pathlib.Path) -> None:
    """Write a document as a page. A page that moec wrote and nobody changed is replaced. Raises MoecError where
    something else is there, or the file system refuses.

    Each section is compressed on its own, and the page decodes it when a view first reads it. The policy in the head
    lets the page run moec's program and no other, and reach nothing, whatever the names in a model hold.
    """
    write_sealed(path, page(document).encode(), "<!-- ")


def page(document: dict[str, Any]) -> str:
    """Return a document as the text of a page."""
    program, style = _asset("explorer.js"), _asset("explorer.css")
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    parts = "".join(_part(place, name, value) for place, name, value in _parts(document))
    index = _text(json.dumps(_index(document), ensure_ascii=False)).replace("<", "\\u003c")
    head = _HEAD.format(digest=digest, title=html.escape(_text(document["title"])), style=style)
    data = f'<script type="application/json" id="index">{index}</script>\n{parts}'
    return f"{head}{data}<script>{program}</script>\n</body>\n</html>\n"


def _asset(name: str) -> str:
    return (importlib.resources.files("moec.exploring") / "page" / name).read_text(encoding="utf-8")


def _index(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the page needs at once: titles, and the sections that are not empty."""
    artifacts = [
        {
            "title": artifact["title"],
            "target": artifact["target"],
            "sections": sorted(k for k, v in artifact.items() if v),
        }
        for artifact in document["artifacts"]
    ]
    sections = [name for place, name, _ in _parts(document) if place == _REPORT]
    return {key: document[key] for key in _HEAD_KEYS} | {"artifacts": artifacts, "sections": sections}


def _parts(document: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Go through the sections that are not empty: the place of their artifact, or that of the report, and names."""
    for place, artifact in enumerate(document["artifacts"]):
        yield from ((str(place), name, value) for name, value in artifact.items() if value)
    others = {name: value for name, value in document.items() if name not in (*_HEAD_KEYS, "artifacts")}
    yield from ((_REPORT, name, value) for name, value in others.items() if value)


def _part(place: str, name: str, value: Any) -> str:
    content = _text(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    packed = gzip.compress(content.encode(), compresslevel=9, mtime=0)
    return f'<script type="text/plain" id="part-{place}-{name}">{base64.b64encode(packed).decode()}</script>\n'


def _text(text: str) -> str:
    """Replace what a name could break a page with: lone surrogates, which stand for bytes of a file's name that are no
    text, and which no address can hold, and marks of direction, which would turn the page's own words around, too."""
    return text.encode(errors="replace").decode().translate(_DIRECTIONS)
