"""Loads in the machine code of products: of the matrix, while numbers are multiplied, and of scales."""

from __future__ import annotations

import pytest

from moec.targets.cuda.nvcc import compile_source, find_disassembler
from moec.targets.gpu.kernels.gemv_tile import AHEAD, COLUMNS_PER_WARP

from .kernel_runner import source_of
from .machine_code import main_loop, until_used
from .test_machine_code import AMPERE, HOPPER, KERNELS

pytestmark = pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
_LOAD, _PRODUCT = "LDG.E.128", "FFMA"


@pytest.mark.parametrize(
    ("name", "architecture", "rows"),
    [
        ("gemv", HOPPER, 1),
        pytest.param("gemv", AMPERE, 1, marks=pytest.mark.nightly),
        pytest.param("dense gemv", HOPPER, 4, marks=pytest.mark.nightly),
    ],
)
def test_a_matrix_is_loaded_while_numbers_of_other_steps_are_multiplied(name, architecture, rows):
    """``rows``: of a warp, each of which multiplies the 8 numbers of a lane of each of its columns in a step. ptxas
    moves a load towards its use; at least a third of a step's products stay between them."""
    (sass,) = compile_source(source_of(KERNELS[name](), architecture), architecture).sass.values()
    step = rows * 8 * COLUMNS_PER_WARP
    steps = AHEAD + 1
    loop = main_loop(sass, _PRODUCT)
    assert sum(what.startswith(_PRODUCT) for what in loop) == steps * step
    ahead = [products for products in until_used(loop, _LOAD, _PRODUCT) if products >= step / 3]
    assert len(ahead) >= steps * COLUMNS_PER_WARP


@pytest.mark.parametrize(
    ("name", "loads", "most"),
    [
        ("wgmma, fp8, shared scales", 2 + 2, 160),
        pytest.param("wgmma, fp8", 2 + 18, 370, marks=pytest.mark.nightly),
    ],
)
def test_scales_that_columns_share_are_loaded_once(name, loads, most):
    """``loads``: of the scales of a lane's rows and of its columns in a k-tile; ``most``: a bound on all
    instructions."""
    (sass,) = compile_source(source_of(KERNELS[name](), HOPPER), HOPPER).sass.values()
    loop = main_loop(sass, "QGMMA")
    assert sum(what.startswith("LDG") for what in loop) == loads
    assert len(loop) < most


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        (["LDG.E.128 R4, [R8.64]", "FFMA R0, R1, R2, R0", "FFMA R0, R7, R2, R0"], [1]),
        (["FFMA R0, R1, R2, R0", "PRMT R1, R4, R2, R0", "FFMA R0, R1, R2, R0", "LDG.E.128 R4, [R8.64]"], [1]),
        (["FFMA R0, R4, R2, R0", "LDG.E.128 R4, [R8.64]"], [0]),
        (["FFMA R40, R1, R2, R40", "LDG.E.64 R4, [R8.64]"], []),
    ],
    ids=["in this turn", "in the next turn", "at once", "another load"],
)
def test_until_used(loop, expected):
    assert until_used(loop, _LOAD, _PRODUCT) == expected
