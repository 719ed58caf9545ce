"""One kernel at all levels: the lines of each level link to operators, through every level between."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from moec import targets
from moec.common.errors import MoecError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.exploring.kernel_levels import kernel_levels
from moec.exploring.subject import Subject
from moec.runtime.manifest import ProjectEntry

from ..conftest import EXAMPLE
from .test_model_nodes import HEAD

GRAPHS = ("onnx", "operators")


@pytest.fixture(scope="module")
def subject(char_lm) -> Subject:
    return Subject.open(char_lm)


@pytest.fixture(scope="module")
def gemm(subject):
    return kernel_levels(subject, "moe_grouped_gemm")


def level(described, name):
    return next(level for level in described["levels"] if level["level"] == name)


def statements(level):
    """The text of all lines with an id, by id."""
    texts: dict[int, str] = {}
    for line, link in zip(level["text"].splitlines(), level["lines"], strict=True):
        texts[link] = texts.get(link, "") + line
    return texts


def origins(described, link):
    """The ids that a line comes from, itself included."""
    found, pending = set(), [link]
    while pending:
        one = pending.pop()
        found.add(one)
        pending += described["parents"].get(str(one), [])
    return found


def linked(described) -> float:
    """The share of lines of code with an id that comes from an operator; empty lines do not count."""
    operators = set(level(described, "operators")["lines"])
    lines = [
        (line, link)
        for level in described["levels"]
        if level["level"] not in GRAPHS
        for line, link in zip(level["text"].splitlines(), level["lines"], strict=True)
        if line
    ]
    return sum(link is not None and bool(origins(described, link) & operators) for _, link in lines) / len(lines)


def test_lines_of_nearly_all_kernels_link_to_operators(subject):
    kernels = [kernel["name"] for kernel in subject.description["kernels"]]
    shares = [linked(kernel_levels(subject, name)) for name in kernels]
    assert sum(share >= 0.95 for share in shares) >= 0.95 * len(kernels)


@pytest.mark.nightly
@pytest.mark.skipif(not targets.kind_of("cuda").find_tool("nvcc"), reason="there is no nvcc")
def test_lines_of_nearly_all_kernels_of_a_gpu_link_to_operators(tmp_path):
    path = tmp_path / "char_lm"
    compiler.write(EXAMPLE / "model.onnx", path, CompileOptions(target="cuda:sm_90a"))
    subject = Subject.open(path)
    described = [kernel_levels(subject, kernel["name"]) for kernel in subject.description["kernels"]]
    shares = [linked(kernel) for kernel in described]
    assert sum(share >= 0.95 for share in shares) >= 0.95 * len(described)
    product = next(kernel for kernel in described if kernel["name"] == "moe_grouped_gemm_simt")
    (resources,) = product["resources"]
    assert (resources["spill_bytes"], resources["occupancy"]["gpu"]) == (0, "H100 SXM")
    ptx, cuda = level(product, "ptx"), statements(level(product, "cuda"))
    pairs = zip(ptx["text"].splitlines(), ptx["lines"], strict=True)
    sums = [link for line, link in pairs if "fma.rn.f32" in line and "sums" in cuda[link]]
    assert len(sums) > 100
    tir = statements(level(product, "tir"))
    assert all("sums" in tir[parent] for link in sums for parent in product["parents"][str(link)])


def test_levels_go_from_the_imported_nodes_to_machine_code(gemm):
    assert [level["level"] for level in gemm["levels"]] == ["onnx", "operators", "tir", "llvm", "asm"]
    assert [level["absent"] for level in gemm["levels"]] == [None] * 5
    operators = level(gemm, "operators")
    assert [line.partition(" ")[0] for line in operators["text"].splitlines()] == [
        '["node_topk__1.experts"]',
        '["node_topk_1__1.experts"]',
    ]
    nodes = {line.partition("]")[0].strip("[") for line in level(gemm, "onnx")["text"].splitlines()}
    assert {"node_Softmax_230", "node_Softmax_390"} <= nodes
    assert "node_linear_10" not in nodes, "the product after the layers"


def test_instructions_come_from_the_line_that_says_what_they_compute(gemm):
    tir, assembly = level(gemm, "tir"), level(gemm, "asm")
    texts = statements(tir)
    pairs = zip(assembly["text"].splitlines(), assembly["lines"], strict=True)
    products = [texts[link] for line, link in pairs if line.startswith("\tvfmadd")]
    assert len(products) > 50
    assert all("rows[" in line and "weights0[" in line for line in products)


def test_loops_say_how_often_they_run_and_what_they_move(gemm):
    (outer,) = gemm["loops"]
    assert outer["kind"] == "parallel"

    def inner(loop):
        return [loop, *(deeper for child in loop["children"] for deeper in inner(child))]

    lines = level(gemm, "tir")["text"].splitlines()
    loops = inner(outer)
    assert all(f"for {loop['variable']} in" in lines[loop["line"] - 1] for loop in loops)
    inputs = next(loop for loop in loops if loop["variable"] == "k" and loop["extent"] == 48)
    columns = inner(inputs)[-1]
    assert (columns["kind"], columns["extent"], columns["operations"]) == ("vectorized", 32, 64)
    assert (columns["bytes_read"], columns["bytes_written"]) == (32 * (4 + 4), 0)
    assert inputs["operations"] == 48 * sum(child["operations"] for child in inputs["children"])
    assert [loop["line"] for loop in loops] == sorted(loop["line"] for loop in loops)
    buffers = {buffer["name"]: buffer for buffer in gemm["buffers"]}
    assert buffers["weights0"] == {
        "name": "weights0",
        "scope": "parameter",
        "shape": [24576],
        "dtype": "float32",
        "bytes": 4 * 24576,
    }
    assert buffers["rows"]["bytes"] == "4 * R * 48"


def test_without_links_a_level_says_so(subject, monkeypatch):
    (program,) = subject.artifact.manifest.programs
    kernel = next(kernel for kernel in program.kernels if kernel["name"] == "add")
    monkeypatch.setitem(kernel, "structure", None)
    described = kernel_levels(subject, "add")
    for form in ("tir", "llvm", "asm"):
        assert "does not say which lines" in level(described, form)["absent"]
        assert set(level(described, form)["lines"]) == {None}
    assert described["loops"] == described["buffers"] == []
    monkeypatch.delitem(kernel["sources"], "asm")
    assert level(kernel_levels(subject, "add"), "asm") == {
        "level": "asm",
        "text": "",
        "lines": [],
        "absent": "it was not kept",
    }


def subject_of(projects, texts):
    """Subject of an artifact with projects for an FPGA, of a model in the file ``ir``."""
    manifest = SimpleNamespace(target="hls:zcu102", projects=projects, stages=[{"file": "ir"}], programs=[])
    return Subject("a", SimpleNamespace(manifest=manifest, text=texts.__getitem__))


def test_a_design_is_described_with_its_nodes_and_says_why_its_lines_have_none():
    graph = HEAD + "main (float[n] x) => (float[n] y)\n{\n   [a] t = Exp (x)\n   [b] y = Exp (t)\n}\n"
    texts = {"ir": graph, "projects/all/src/model.cpp": "void top() {\n}\n"}
    projects = [ProjectEntry("all", "projects/all", {"node": "whole", "layers": [{"node": "b"}]})]
    described = kernel_levels(subject_of(projects, texts), "all")
    assert [level["level"] for level in described["levels"]] == ["onnx", "operators", "hls"]
    assert level(described, "operators")["text"] == "[b] y = Exp (t)\n"
    assert level(described, "hls")["text"] == texts["projects/all/src/model.cpp"]
    assert level(described, "hls")["lines"] == [None, None]
    assert "belong to no single one" in level(described, "hls")["absent"]
    assert described["loops"] == described["resources"] == []


@pytest.mark.parametrize(("name", "lines"), [("inner", 4), ("first", 1), ("outside", 0)])
def test_a_node_in_the_body_of_a_loop_stands_for_the_loop(name, lines):
    body = "[loop] y = Loop <body: graph = b (int64 i) => (float[n] z)\n   {\n      [inner] z = Exp (i)\n   }> (k, t)"
    graph = f"{HEAD}main (float[n] x, int64 k) => (float[n] y)\n{{\n   [first] t = Exp (x)\n   {body}\n}}\n"
    projects = [ProjectEntry("all", "p", {"node": name})]
    described = kernel_levels(subject_of(projects, {"ir": graph, "p/src/model.cpp": ""}), "all")
    assert len(level(described, "operators")["lines"]) == lines


def test_an_unknown_kernel_is_refused_with_the_names_of_all(subject):
    with pytest.raises(MoecError, match=r"has no kernel 'nothing'; its kernels: .*moe_grouped_gemm"):
        kernel_levels(subject, "nothing")
