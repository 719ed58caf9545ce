"""Kernels for matrix tiles on processors without them: every instruction is a function of matrix_tiles.c."""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from tvm.script import tirx as T

from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes.cast_weights import CastWeights
from moec.passes.framework.base import Pass, Report
from moec.passes.quantize_experts import QuantizeExperts
from moec.targets.cpu import packed_weights
from moec.targets.cpu.hardware.machine import MACHINES, host_has
from moec.targets.cpu.kernels import matrix_tile
from moec.targets.cpu.kernels.multiplication import Multiplication, crossover_rows
from moec.targets.cpu.kernels.tiled_format import TiledFormat

from ...products import thinned
from ..node_models import node_model
from .one_node import compile_model

SOURCE = pathlib.Path(__file__).with_name("matrix_tiles.c")
ROWS = (52, 36, 20, 4, 2)
"""Of each expert: second blocks with more and fewer rows than a tile has, one small block, and too few for tiles, which
begin at 5 rows here in all formats."""
PASSES: dict[str, Pass] = {
    "bfloat16": CastWeights("bf16"),
    "int8": QuantizeExperts("int8"),
    "int8 in groups of 64": QuantizeExperts("int8", group=64),
    "int4 in groups of 32 with zero points": QuantizeExperts("int4", group=32, zero_points=True),
    "int4 in groups of 16, rows in groups of 32": QuantizeExperts("int4", group=16, activation_group=32),
    "int4 in groups of 128": QuantizeExperts("int4", group=128),
    "mxfp4": QuantizeExperts("mxfp4"),
}


@pytest.fixture(scope="module")
def emulated_tiles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = tmp_path_factory.mktemp("tiles") / "matrix_tiles.so"
    subprocess.run(["g++", "-x", "c", "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

    def call(name: str, *arguments: Any) -> None:
        T.evaluate(T.call_extern("void", f"emulated_{name}", *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_tile, "_tile", call)
        patch.setattr(packed_weights, "crossover_rows", lambda *_: 5)
        yield


@pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs a compiler")
@pytest.mark.skipif(not host_has(MACHINES["avx512bf16"].features), reason="the rest of the code needs AVX-512 BF16")
@pytest.mark.usefixtures("emulated_tiles")
@thinned("passes", PASSES, 4)
def test_experts_agree_with_the_interpreter(passes: str) -> None:
    E, tokens = len(ROWS), sum(ROWS)
    d, f = 128, 96
    random = np.random.default_rng(1)
    constants = {
        "up": random.standard_normal((E, 2 * f, d)).astype(np.float32) / np.sqrt(d, dtype=np.float32),
        "down": random.standard_normal((E, d, f)).astype(np.float32) / np.sqrt(f, dtype=np.float32),
    }
    case = {
        "x": random.standard_normal((tokens, d)).astype(np.float32),
        "weights": random.random((tokens, 2)).astype(np.float32),
        "experts": np.stack([np.repeat(range(E), ROWS), np.full(tokens, -1)], axis=1).astype(np.int32),
    }
    spec = ExpertsSpec("silu", "gate_up")
    model = node_model("Experts", case, constants, spec)
    PASSES[passes].apply(model, Report())
    (y,) = compile_model(model, MACHINES["amx"])(**case)
    expected = interpreter.run(model, case, dtype=np.float64)["y"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=6e-3 * np.abs(expected).max())
    assert np.linalg.norm(y - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "group, step", [(0, 64), (16, 16), (32, 32), (64, 64), (128, 64), (192, 64), (8, None), (48, None), (96, None)]
)
def test_groups_of_whole_steps_go_by_tiles(group: int, step: int | None) -> None:
    product = Multiplication(MACHINES["amx"], TiledFormat("int4", group), "int8")
    assert product.tiles_used == (step is not None)
    assert product.requirements == (() if step is None else ("amx-tile", "amx-int8"))
    assert step is None or product.step_bytes == step


@pytest.mark.parametrize("machine, arithmetic", [("amx", "float32"), ("avx512bf16", "bfloat16"), ("avx2", "int8")])
def test_other_arithmetic_and_machines_have_no_tiles(machine: str, arithmetic: str) -> None:
    product = Multiplication(MACHINES[machine], TiledFormat("bfloat16"), arithmetic)
    assert not product.tiles_used and product.requirements == ()


@pytest.mark.parametrize("missing, arithmetic", [("amx-bf16", "bfloat16"), ("amx-int8", "int8")])
def test_tiles_of_one_element_say_nothing_of_the_other(missing: str, arithmetic: str) -> None:
    machine = MACHINES["amx"]
    machine = dataclasses.replace(
        machine, features=tuple(feature for feature in machine.features if feature != missing)
    )
    for one, stored in (("bfloat16", "bfloat16"), ("int8", "int8")):
        assert Multiplication(machine, TiledFormat(stored), one).tiles_used == (one != arithmetic)


def test_tiles_begin_at_more_rows_where_weights_are_decoded_and_groups_are_small() -> None:
    rows = [crossover_rows("int8", TiledFormat(f"int{bits}", group)) for bits, group in [(8, 0), (8, 128), (4, 128)]]
    small = [crossover_rows("int8", TiledFormat(f"int{bits}", 32)) for bits in (8, 4)]
    assert rows[0] == rows[1] < rows[2] == small[0] < small[1]
    assert crossover_rows("bfloat16", TiledFormat("bfloat16")) < rows[0]
