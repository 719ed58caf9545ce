"""Imports between the parts of moec: each layer imports only the layers that it may."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from moec import targets

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = {"moec": "moec", "passes": "moec.passes", "targets": "moec.targets", "simulators": "moec.simulators"}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """All modules by name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(nodes: list[ast.stmt], *, deep: bool) -> Iterator[str]:
    """Modules of moec that the statements import when they run; with ``deep`` also those in functions and for types."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in sources() else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not deep:
            yield from imports(node.orelse, deep=deep)
        elif deep or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [one for one in ast.iter_child_nodes(node) if isinstance(one, (ast.stmt, ast.ExceptHandler))]
            yield from imports(inside, deep=deep)  # type: ignore[arg-type]


@functools.cache
def documentation() -> set[int]:
    """Ids of all docstrings: of modules, and of classes and functions in them."""
    statements = (node for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {id(node.value) for node in statements}


def importers(package: str, *, deep: bool = True) -> set[str]:
    """Modules outside of a package that import one of its modules."""

    def is_inside(name: str) -> bool:
        return f"{name}.".startswith(f"{package}.")

    return {
        name
        for name, tree in sources().items()
        if not is_inside(name) and any(map(is_inside, imports(tree.body, deep=deep)))
    }


def test_what_commands_print_is_imported_by_the_command_line_alone():
    assert importers("moec.inspect") == {
        "moec.cli.main",
        "moec.cli.data",
        "moec.cli.inspect",
        "moec.cli.printing",
        "moec.cli.times",
    }


@pytest.mark.parametrize("kind", targets.KINDS)
def test_no_kind_of_target_is_imported_outside_of_its_package(kind):
    others = {name for name in importers(f"moec.targets.{kind}") if not name.startswith(f"moec.simulators.{kind}")}
    assert others == set()


def test_no_kind_of_target_is_spelled_outside_of_targets():
    """The name of the default is also the word for the processor; a name with a variant is no word. What is written for
    people, in docstrings, may name one."""
    names = targets.KINDS.keys()
    words = re.compile(rf"({'|'.join(names - {targets.DEFAULT})})|.*\b({'|'.join(names)}):\w.*")
    spelled = [
        (name, node.value)
        for name, tree in sources().items()
        if not name.startswith(("moec.targets", "moec.simulators"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in documentation() and words.fullmatch(node.value)
    ]
    assert spelled == []


def test_generating_code_loads_nothing_that_runs_it():
    program = """if True:
        import importlib, pkgutil, sys
        import moec.targets
        for module in pkgutil.walk_packages(moec.targets.__path__, "moec.targets."):
            importlib.import_module(module.name)
        avoided = ("moec.runtime.executor", "moec.inspect", "moec.tools", "moec.simulators", "moec.cli")
        print(*(name for name in sys.modules if name.startswith(avoided)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", ["moec.common", "moec.ir"])
def test_what_all_share_knows_none_of_them(package):
    others = ("moec.frontend", "moec.passes", "moec.targets", "moec.runtime", "moec.tools", "moec.inspect", "moec.cli")
    inside = [name for name in sources() if f"{name}.".startswith(f"{package}.")]
    known = {one for name in inside for one in imports(sources()[name].body, deep=True) if one.startswith(others)}
    assert known == set()


def test_modules_do_not_import_each_other_in_circles():
    graph = {name: set(imports(tree.body, deep=False)) & sources().keys() for name, tree in sources().items()}
    left = dict(graph)
    while ends := [name for name, known in left.items() if not known & left.keys() - {name}]:
        for name in ends:
            del left[name]
    assert sorted(left) == []
