"""Pages of the documentation: links lead somewhere, paths in them exist, and Python in them names what moec has."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

import moec

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("benchmarks", "docs", "examples", "moec", "passes", "simulators", "targets", "tests", "tools")
PAGES = [*ROOT.glob("*.md"), *(page for top in FOLDERS for page in (ROOT / top).rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./{{}},*<>-]+)`")


def anchors(page: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in words}


def missing_links(page: pathlib.Path) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    missing = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            missing.append(link)
    return missing


def alternatives(path: str) -> list[str]:
    """Paths that the braces of one stand for: ``a/{b,c}.py`` is ``a/b.py`` and ``a/c.py``."""
    braces = re.search(r"\{([^}]*)\}", path)
    if braces is None:
        return [path]
    return [path.replace(braces[0], name, 1) for name in braces[1].split(",")]


def missing_paths(page: pathlib.Path) -> list[str]:
    """Paths in backticks that do not exist; ``<name>`` stands for any name."""
    paths = (path for text in PATH.findall(page.read_text(encoding="utf-8")) for path in alternatives(text))
    return [path for path in paths if not any(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/")))]


def missing_attributes(page: pathlib.Path) -> list[str]:
    """Names that Python of the page expects ``import moec`` to offer."""
    nodes = [node for block in PYTHON.findall(page.read_text(encoding="utf-8")) for node in ast.walk(ast.parse(block))]
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "moec"
    }
    return sorted(used - {*moec.__all__, "torch"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_paths_and_names_of_a_page_exist(page):
    assert (missing_links(page), missing_paths(page), missing_attributes(page)) == ([], [], [])


def test_a_link_to_a_missing_heading_and_a_path_of_a_missing_file_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n\n[a](#one) [b](#two) [c](other.md) `moec/ir/dialect.py` `moec/ir/{dialect,nothing}.py`\n")
    assert missing_links(page) == ["#two", "other.md"]
    assert missing_paths(page) == ["moec/ir/nothing.py"]


def test_a_module_that_is_not_imported_with_moec_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nmoec.torch.as_module(moec.load('a'))\nmoec.targets.hls.options.HlsOptions()\n```\n")
    assert missing_attributes(page) == ["targets"]
