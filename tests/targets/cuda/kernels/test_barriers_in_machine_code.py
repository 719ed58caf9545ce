"""Barriers for memory in the machine code of products that run in clusters: at the begin and the end, not in loops."""

from __future__ import annotations

import re

import pytest

from moec.targets.cuda.nvcc import compile_source, find_disassembler

from .kernel_runner import source_of
from .machine_code import instructions_of, repeated
from .test_machine_code import HOPPER, KERNELS

pytestmark = pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
_FOR_THE_GPU = r"MEMBAR\.\w+\.(GPU|SYS)|CCTL\.IVALL"
_RELEASE, _ACQUIRE, _PRODUCT = r"MEMBAR\.\w+\.GPU", r"CCTL\.IVALL", "[HQ]GMMA"
IN_CLUSTERS = ["wgmma, 128 rows", "wgmma, fp8", "wgmma, results of pairs", "wgmma, dense, 128 rows"]
ALONE = ["wgmma, 64 rows", "wgmma, int4"]
QUICK = {"wgmma, 128 rows", "wgmma, fp8"}


def _sass(name: str) -> str:
    (sass,) = compile_source(source_of(KERNELS[name](), HOPPER), HOPPER).sass.values()
    return sass


def _places(sass: str, operation: str) -> list[int]:
    return [at for at, each in instructions_of(sass).items() if re.match(operation, each.what)]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in IN_CLUSTERS]
)
def test_blocks_of_a_cluster_meet_at_the_begin_and_the_end(name):
    """A release is made visible to the whole GPU, and an acquire invalidates the L1 cache. Neither is repeated for the
    k-tiles, whose products are."""
    sass = _sass(name)
    products = repeated(sass, _PRODUCT)
    assert products == _places(sass, _PRODUCT) and products
    assert not repeated(sass, _FOR_THE_GPU)
    for operation in (_RELEASE, _ACQUIRE):
        begin, end = _places(sass, operation)
        assert begin < products[0] and products[-1] < end


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALONE)
def test_blocks_without_a_cluster_have_no_barrier_for_the_gpu(name):
    sass = _sass(name)
    assert repeated(sass, _PRODUCT) and not _places(sass, _FOR_THE_GPU)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (["MOV R0, R1", "MEMBAR.ALL.GPU", "@P0 BRA 0x0000", "EXIT"], [0x10]),
        (["MOV R0, R1", "MEMBAR.ALL.GPU", "@P0 BRA 0x0010", "EXIT"], [0x10]),
        (["MEMBAR.ALL.GPU", "MOV R0, R1", "@P0 BRA 0x0010", "EXIT"], []),
        (["MOV R0, R1", "@P0 BRA 0x0040", "MEMBAR.ALL.GPU", "EXIT", "MOV R0, R1", "BRA 0x0000"], []),
        (["MOV R0, R1", "@P0 BRA 0x0030", "EXIT", "MEMBAR.ALL.GPU", "BRA 0x0000"], [0x30]),
    ],
    ids=["in a loop", "at the begin of a loop", "before a loop", "after a loop", "in a part behind the end"],
)
def test_what_is_repeated_can_be_reached_from_itself(code, expected):
    text = "".join(f"        /*{16 * i:04x}*/                   {what} ;\n" for i, what in enumerate(code))
    assert repeated(text, _FOR_THE_GPU) == expected
