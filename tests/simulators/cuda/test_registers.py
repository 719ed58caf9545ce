"""setmaxnreg: a block has the registers that its threads started with, and not more."""

from __future__ import annotations

import numpy as np
import pytest

from .emulated import load

KERNEL = """
extern "C" __global__ void __launch_bounds__(384) {name}(int* results) {{
  if (threadIdx.x < 128) {{
    {copying}
  }} else {{
    {computing}
  }}
  results[threadIdx.x] = 1;
}}
"""


def set_registers(how: str, count: int) -> str:
    return f'asm volatile("setmaxnreg.{how}.sync.aligned.u32 %0;" : : "n"({count}));'


# 65536 registers for 384 threads are 168 each, rounded down to a multiple of 8.
CASES = {
    "all_are_used": (set_registers("dec", 40), set_registers("inc", 232), None),
    "some_are_left": (set_registers("dec", 24), set_registers("inc", 232), None),
    "over_subscribed": (
        set_registers("dec", 40),
        set_registers("inc", 240),
        "deadlock: .*32 at setmaxnreg.inc, for registers that nobody gives back",
    ),
    "none_given_back": ("", set_registers("inc", 176), "deadlock: .*256 at setmaxnreg.inc, for registers"),
    "no_multiple": (set_registers("dec", 41), "", "setmaxnreg.dec: 41 registers are no multiple of 8 from 24 to 256"),
    "too_few": (set_registers("dec", 16), "", "setmaxnreg.dec: 16 registers are no multiple of 8 from 24 to 256"),
    "less_taken": (set_registers("inc", 160), "", "setmaxnreg.inc to 160 registers of 168"),
    "more_given_back": (set_registers("dec", 176), "", "setmaxnreg.dec to 176 registers of 168"),
}


@pytest.fixture(scope="module")
def kernels():
    source = ""
    for name, (copying, computing, _) in CASES.items():
        source += KERNEL.format(name=name, copying=copying, computing=computing)
    return load(source, *CASES)


@pytest.mark.parametrize("name", CASES)
def test_registers_are_those_of_the_block(kernels, name):
    results, problem = np.zeros(384, np.int32), CASES[name][2]
    if problem is None:
        kernels[name](results, block=384)
        assert results.all()
        return
    with pytest.raises(RuntimeError, match=problem):
        kernels[name](results, block=384)
