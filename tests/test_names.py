"""Variables say what they hold: words such as ``found`` and ``one``, which say nothing of it, name none."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
VAGUE = {"found", "one", "given", "known", "made", "told", "wanted", "held", "beside", "narrows", "spread"}
CLEAN = [
    "moec/cli",
    "moec/common",
    "moec/frontend",
    "moec/inspect",
    "moec/ir",
    "moec/profiles",
    "moec/torch",
    "passes",
]
FIELDS = {"held", "spread"}
"""Fields of records that files and reports hold under these names; a class may declare them."""


def vague_variables(source: str) -> list[str]:
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    fields = {line.target for node in classes for line in node.body if isinstance(line, ast.AnnAssign)}
    names: list[tuple[str, ast.arg | ast.Name]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.append((node.arg, node))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.id, node))
    vague = [(name, node) for name, node in names if name in VAGUE and not (name in FIELDS and node in fields)]
    return [f"line {node.lineno}: {name}" for name, node in vague]


@pytest.mark.parametrize("folder", CLEAN)
def test_variables_say_what_they_hold(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    vague = [f"{path.relative_to(ROOT)}, {place}" for path in files for place in vague_variables(path.read_text())]
    assert not vague, "name the thing (match, node, expected, actual): " + "; ".join(vague)


@pytest.mark.parametrize(
    ("source", "vague"),
    [
        ("found = 1", ["line 1: found"]),
        ("def f(given): pass", ["line 1: given"]),
        ("[one for one in x]", ["line 1: one"]),
        ("if (known := f()): pass", ["line 1: known"]),
        ("class A:\n    held: int = 0", []),
        ("class A:\n    made: int = 0", ["line 2: made"]),
        ("x.found = y.known(one=1)", []),
    ],
)
def test_what_counts_as_a_variable(source, vague):
    assert vague_variables(source) == vague
