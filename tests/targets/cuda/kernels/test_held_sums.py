"""Sums of wgmma are held behind the wait for their products, without an instruction."""

from __future__ import annotations

import re

import pytest

from moec.targets.cuda.nvcc import compile_source, find_disassembler

from .kernel_runner import source_of
from .machine_code import instructions_of
from .test_machine_code import HOPPER, KERNELS

_WAIT, _HELD = r"wgmma_wait_group_\d\(\);", r"\n[^\n]*\bhold\(&\w+\[\w+\]\);"


@pytest.mark.parametrize(
    ("name", "waits"),
    [("wgmma, 128 rows", 2), ("wgmma, fp8", 1), pytest.param("wgmma, attention", 4, marks=pytest.mark.nightly)],
)
def test_sums_are_held_behind_each_wait(name, waits):
    """A wait within the loop over k-tiles, after which no sum is read, needs nothing."""
    text = source_of(KERNELS[name](), HOPPER)
    code = text[text.index("void __launch_bounds__") :]
    assert len(re.findall(rf"{_WAIT}\n[^\n]*#pragma unroll\n[^\n]*for [^\n]*{{{_HELD}", code)) == waits
    assert len(re.findall(_HELD, code)) == waits


@pytest.mark.nightly
@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@pytest.mark.parametrize("name", ["wgmma, 128 rows", "wgmma, fp8", "wgmma, attention"])
def test_the_machine_code_stays_the_same(name):
    """Registers may have other numbers."""
    held = source_of(KERNELS[name](), HOPPER)
    plain, removed = re.subn(_HELD, ";", held)
    assert removed
    (with_held,), (without,) = (compile_source(source, HOPPER).sass.values() for source in (held, plain))
    operations = [[each.what.split()[0] for each in instructions_of(sass).values()] for sass in (with_held, without)]
    assert operations[0] == operations[1]
