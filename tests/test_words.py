"""Words of the code: one class has a name, and docstrings say their subject first."""

from __future__ import annotations

import ast
import collections
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PRODUCT = ("moec", "passes", "targets", "simulators")
ALL = (*PRODUCT, "benchmarks", "examples", "tests", "tools")
NAMESAKES: dict[str, str] = {}
"""Names that several classes may have, each with the reason; at most 4."""
PRONOUNS = {"What", "Of", "How", "Which", "Where", "Those", "That", "So"}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def trees(*tops: str) -> Iterator[tuple[pathlib.Path, ast.Module]]:
    for top in tops:
        for path in sorted((ROOT / top).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def shared_names(files: Iterator[tuple[pathlib.Path, ast.Module]]) -> dict[str, list[str]]:
    """Names of classes, without leading underscores, that two or more files define."""
    places: dict[str, set[str]] = collections.defaultdict(set)
    for path, tree in files:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].add(str(path))
    return {name: sorted(paths) for name, paths in places.items() if len(paths) > 1}


def headless(tree: ast.Module) -> Iterator[str]:
    """First lines of docstrings that begin with a pronoun or a question word."""
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, Documented) else None
        if text and text.split(maxsplit=1)[0].strip(",.:;") in PRONOUNS:
            yield text.splitlines()[0]


def test_a_name_belongs_to_one_class():
    assert shared_names(trees(*PRODUCT)).keys() == NAMESAKES.keys()
    assert len(NAMESAKES) <= 4 and all(NAMESAKES.values())


@pytest.mark.parametrize("top", ALL)
def test_docstrings_say_their_subject_first(top):
    assert [f"{path}: {line}" for path, tree in trees(top) for line in headless(tree)] == []


def test_namesakes_and_headless_docstrings_are_found():
    first = ast.parse("class Rows:\n    pass")
    second = ast.parse('class _Rows:\n    """Those of a tile."""\n\ndef rows():\n    """Whether there are rows."""')
    files = iter([(pathlib.Path("a.py"), first), (pathlib.Path("b.py"), second)])
    assert shared_names(files) == {"Rows": ["a.py", "b.py"]}
    assert list(headless(second)) == ["Those of a tile."]
