"""The machine code of attention by wgmma: weights are computed while the values of the tile before are multiplied.

PTX has them between the two waits, wherever ptxas puts them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moec.targets.cuda.kernels.attention_wgmma import attention_wgmma
from moec.targets.cuda.nvcc import compile_source, find_disassembler
from moec.targets.tvm.heavy.attention import AttentionProblem

from .kernel_runner import source_of
from .machine_code import loops_with

pytestmark = pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
_SCORES, _SUMS, _EXPONENTIAL = "WARPGROUP.DEPBAR.LE gsb0, 0x1", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MUFU.EX2"
LENGTHS = {"causal": "lengths", "has_lengths": True, "paged": "bfloat16"}
MASK = {"mask": "bool", "mask_broadcast": (True, True, False)}


def _loop(size: int, **fields: Any) -> list[str]:
    """The loop over tiles of keys."""
    problem = dataclasses.replace(AttentionProblem(size, size, 0.1, 4, causal="last"), **fields)
    (sass,) = compile_source(source_of(attention_wgmma(problem, "bfloat16"), "sm_90a"), "sm_90a").sass.values()
    (loop,) = loops_with(sass, _SCORES)
    return loop


def _meanwhile(loop: list[str]) -> tuple[int, int]:
    """The number of exponentials between the wait for scores and the wait for sums, and of all exponentials."""
    between = loop[loop.index(_SCORES) : loop.index(_SUMS)]
    return sum(_EXPONENTIAL in what for what in between), sum(_EXPONENTIAL in what for what in loop)


@pytest.mark.parametrize(
    ("size", "most", "fields"),
    [
        (64, 600, {}),
        pytest.param(128, 700, {}, marks=pytest.mark.nightly),
        pytest.param(256, 600, {}, marks=pytest.mark.nightly),
        pytest.param(128, 700, LENGTHS, marks=pytest.mark.nightly),
        pytest.param(64, 840, MASK, marks=pytest.mark.nightly),
        pytest.param(128, 1030, {"softcap": 30.0}, marks=pytest.mark.nightly),
    ],
    ids=["64", "128", "256", "pages", "mask", "cap"],
)
def test_weights_are_computed_while_values_are_multiplied(size, most, fields):
    """``most``: a bound on the instructions of the loop, with those that hide keys."""
    loop = _loop(size, **fields)
    between, exponentials = _meanwhile(loop)
    assert exponentials >= 34 and between >= exponentials / 2
    assert len(loop) < most


def test_exponentials_behind_the_wait_for_sums_do_not_count():
    assert _meanwhile(["MUFU.EX2 R0, R1", _SCORES, "MUFU.EX2 R0, R1", _SUMS, "MUFU.EX2 R0, R1"]) == (1, 3)
    assert _meanwhile([_SCORES, _SUMS, "MUFU.EX2 R0, R1"]) == (0, 1)
