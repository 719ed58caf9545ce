"""Variables say what they hold: words such as ``found`` and ``one``, which say nothing of it, name none."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
VAGUE = {"found", "one", "given", "known", "made", "told", "wanted", "held", "beside", "narrows", "spread"}
CLEAN = ["moec", "passes", "targets", "simulators", "tools", "benchmarks", "examples"]
CLEAN_TESTS = [
    *(
        "benchmarks",
        "checking",
        "cli",
        "common",
        "compiling",
        "exporting",
        "frontend",
        "gpu",
        "inspect",
        "ir",
        "mutants",
    ),
    *("onnx_nodes", "profiles", "raising", "runtime", "simulators", "torch", "passes/export", "passes/graph"),
    *("passes/framework", "passes/shapes", "targets/cuda/device", "targets/cuda/text", "targets/gpu"),
    *("targets/hls/lint", "tools/sweeping"),
]
TVMSCRIPT = ("prim_func", "inline")
"""Decorators of functions that TVM's parser reads."""
FIELDS = {"held", "spread", "wanted"}
"""Fields of records that files, reports and programs hold under these names; a class may declare them."""


def vague_variables(source: str) -> list[str]:
    """Variables with vague names, except in TVMScript, whose variables are names in generated code."""
    tree = ast.parse(source)
    allowed: set[ast.AST] = set()
    vague: list[tuple[str, ast.arg | ast.Name]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            word in ast.dump(mark) for mark in node.decorator_list for word in TVMSCRIPT
        ):
            allowed.update(ast.walk(node))
        elif isinstance(node, ast.ClassDef):
            fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
            allowed.update(name for name in fields if isinstance(name, ast.Name) and name.id in FIELDS)
        elif isinstance(node, ast.arg) and node.arg in VAGUE:
            vague.append((node.arg, node))
        elif isinstance(node, ast.Name) and node.id in VAGUE and isinstance(node.ctx, ast.Store):
            vague.append((node.id, node))
    return [f"line {node.lineno}: {name}" for name, node in vague if node not in allowed]


@pytest.mark.parametrize("folder", [*CLEAN, *(f"tests/{folder}" for folder in CLEAN_TESTS)])
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
        ("@T.prim_func(private=True)\ndef kernel(held):\n    found = 1", []),
        ("@T.inline\ndef step(held):\n    found: T.let = 1", []),
        ("@cache\ndef kernel():\n    found = 1", ["line 3: found"]),
    ],
)
def test_what_counts_as_a_variable(source, vague):
    assert vague_variables(source) == vague
