"""Imports between the parts of moec: each layer imports only the layers that it may."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
import scipy.sparse

from moec import targets

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = {"moec": "moec", "passes": "moec.passes", "targets": "moec.targets", "simulators": "moec.simulators"}


@functools.cache
def files() -> dict[str, pathlib.Path]:
    """The files of all modules by name."""
    results = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            results[".".join([package, *parts]).removesuffix(".__init__")] = path
    return results


@functools.cache
def sources() -> dict[str, ast.Module]:
    """All modules by name."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files().items()}


def folder_of(name: str) -> str:
    """The package that a module is directly in; a package is in itself."""
    return name if files()[name].name == "__init__.py" else name.rpartition(".")[0]


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules of moec that each module imports: when it is imported, in its functions, and for its types alone."""
    return {name: set(_imports(tree)) & sources().keys() - {name} for name, tree in sources().items()}


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in sources() else node.module for name in names)


@functools.cache
def documentation() -> set[int]:
    """Ids of all docstrings: of modules, and of classes and functions in them."""
    statements = (node for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {id(node.value) for node in statements}


def importers(package: str) -> set[str]:
    """Modules outside of a package that import one of its modules."""

    def is_inside(name: str) -> bool:
        return f"{name}.".startswith(f"{package}.")

    return {name for name, imported in imports().items() if not is_inside(name) and any(map(is_inside, imported))}


def test_what_commands_print_is_imported_by_the_command_line_alone():
    assert importers("moec.inspect") == {
        "moec.cli.main",
        "moec.cli.data",
        "moec.cli.export",
        "moec.cli.inspect",
        "moec.cli.plan",
        "moec.cli.printing",
        "moec.cli.times",
    }


@pytest.mark.parametrize("kind", targets.KINDS)
def test_no_kind_of_target_is_imported_outside_of_its_package(kind):
    others = {name for name in importers(f"moec.targets.{kind}") if not name.startswith(f"moec.simulators.{kind}")}
    assert others == set()


def test_instructions_of_a_vendor_stand_in_one_file_of_what_gpus_share():
    """``T.cuda`` and ``T.ptx`` are TVM's names for them. A file of the vendor shows that they are found."""
    users = {
        name
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "ptx")
        if isinstance(node.value, ast.Name) and node.value.id == "T"
    }
    assert {name for name in users if name.startswith("moec.targets.gpu")} == {"moec.targets.gpu.kernels.instructions"}
    assert "moec.targets.cuda.kernels.wgmma_ring" in users


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
    inside = {name for name in sources() if f"{name}.".startswith(f"{package}.")}
    known_to_all = ("moec.common.", "moec.ir")
    outside = {name for user in inside for name in imports()[user] if not name.startswith(known_to_all)}
    assert outside - inside == set()


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The largest sets of nodes that all lead to one another, for sets of more than one node."""
    names = sorted(graph)
    places = {name: place for place, name in enumerate(names)}
    matrix = scipy.sparse.lil_array((len(names), len(names)), dtype=bool)
    for name, imported in graph.items():
        for other in imported:
            matrix[places[name], places[other]] = True
    _, parts = scipy.sparse.csgraph.connected_components(matrix, connection="strong")
    results = [
        {name for name, part in zip(names, parts, strict=True) if part == index} for index in range(max(parts) + 1)
    ]
    return sorted((part for part in results if len(part) > 1), key=min)


def test_circles_are_found_and_what_leads_to_them_is_not():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e"}, "g": {"g"}}
    assert circles(graph) == [{"b", "c"}, {"e", "f"}]


def test_modules_do_not_import_each_other_in_circles():
    assert circles(imports()) == []


def test_folders_do_not_import_each_other_in_circles():
    """A folder knows another one if a file directly in it imports a file directly in the other."""
    graph: dict[str, set[str]] = {folder_of(name): set() for name in sources()}
    for name, imported in imports().items():
        graph[folder_of(name)] |= set(map(folder_of, imported))
    assert circles(graph) == []
