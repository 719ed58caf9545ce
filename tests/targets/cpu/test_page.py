"""docs/cpu.md shows what moec makes of the example, line by line."""

from __future__ import annotations

import pathlib

import pytest

from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions

from ...readable import check_sources

ROOT = pathlib.Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def art(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "char_lm.moec"
    compiler.write(ROOT / "examples" / "char_lm" / "model.onnx", path, CompileOptions(target="cpu:avx2"))
    return path


def test_the_head_of_the_kernel(art):
    text = (art / "src" / "moe_grouped_gemm.tir").read_text().splitlines()
    shown = [line.strip() for line in PAGE if line.startswith("    # ")]
    assert shown and set(shown) <= set(text)


def test_the_inner_loops(art):
    shown = [line.strip() for line in PAGE if "\t" in line]
    assembly = [line.strip() for line in (art / "src" / "moe_grouped_gemm.s").read_text().splitlines()]
    assert any(assembly[at : at + len(shown)] == shown for at in range(len(assembly))) and len(shown) == 7
    tir = [line.strip() for line in (art / "src" / "moe_grouped_gemm.tir").read_text().splitlines()]
    loops = [line.strip() for line in PAGE if line.strip().startswith("for ") and line.endswith(":")]
    printed = [line for line in tir if line.startswith("for ")]
    assert len(loops) == 3 and any(printed[at : at + 3] == loops for at in range(len(printed)))


def test_its_kernels_read_well(art):
    check_sources(art / "src")


def test_the_node_and_its_kernels(art):
    (node,) = [line.strip() for line in PAGE if "moec.MoE <" in line]
    (fused,) = (art / "ir").glob("*-fuse-route-dispatch.onnxtxt")
    assert node in fused.read_text()
    names = [line.split("`")[1] for line in PAGE if line.startswith("| `moe_")]
    assert len(names) == 6 and all((art / "src" / f"{name}.tir").exists() for name in names)
