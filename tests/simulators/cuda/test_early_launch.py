"""Kernels with an early launch must wait before they touch memory that earlier kernels may still use."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.simulators.cuda.translate import translate_assembly

from .emulated import load

WAIT = 'asm volatile("griddepcontrol.wait;" : : : "memory");'
TRIGGER = 'asm volatile("griddepcontrol.launch_dependents;" : : : "memory");'
KERNEL = """
extern "C" __global__ void {name}(const float* x, float* y) {{
  __shared__ alignas(16) float kept_ptr[64];
  kept_ptr[threadIdx.x] = 1;
  float value = 0;
  {body}
}}
"""
LOAD, STORE = "value = x[threadIdx.x];", "y[threadIdx.x] = value + kept_ptr[threadIdx.x];"
PREFETCH = 'asm volatile("prefetch.global.L2 [%0];" : : "l"(x));'
LOAD_AT_ANY_TIME = 'int n; asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(n) : "l"(x) : "memory");'
COPY = (
    'if (threadIdx.x < 8) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" '
    ': : "r"(__cvta_generic_to_shared(&kept_ptr[32 + threadIdx.x * 4])), "l"(x + threadIdx.x * 4) : "memory");'
    'asm volatile("cp.async.wait_all;" : : : "memory");'
)
FINE = {
    "waits_first": WAIT + TRIGGER + LOAD + STORE,
    "prefetches": PREFETCH + WAIT + LOAD + STORE,
    "loads_at_any_time": LOAD_AT_ANY_TIME + "if (n) " + PREFETCH + WAIT + LOAD + STORE,
    "lets_others_begin_at_once": TRIGGER + WAIT + LOAD + STORE,
}
TOO_EARLY = {
    "loads": (LOAD + WAIT + STORE, "a load or store reaches global memory before griddepcontrol.wait"),
    "stores": (STORE + WAIT + LOAD, "a load or store reaches global memory before griddepcontrol.wait"),
    "copies": (COPY + WAIT + STORE, "cp.async reads global memory before griddepcontrol.wait"),
    "never_waits": (TRIGGER, "a thread ends without griddepcontrol.wait"),
    "some_never_wait": ("if (threadIdx.x < 16) return;" + WAIT + LOAD + STORE, "ends without griddepcontrol.wait"),
}


@pytest.fixture(scope="module")
def kernels():
    bodies = {**FINE, **{name: body for name, (body, _) in TOO_EARLY.items()}}
    source = "".join(KERNEL.format(name=name, body=body) for name, body in bodies.items())
    return {early: load(source, *bodies, begins_early=early, watch=True) for early in (True, False)}


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    memory = np.zeros(64, np.float32)
    return memory[-memory.ctypes.data % 64 // 4 :][:32], np.zeros(32, np.float32)


@pytest.mark.parametrize("name", FINE)
def test_what_waits_first_is_right(kernels, name):
    for early in (True, False):
        x, y = _arrays()
        x += 2
        kernels[early][name](x, y)
        np.testing.assert_array_equal(y, x + 1)


@pytest.mark.parametrize("name", TOO_EARLY)
def test_what_does_not_wait_first_is_found(kernels, name):
    with pytest.raises(RuntimeError, match=TOO_EARLY[name][1]):
        kernels[True][name](*_arrays())
    kernels[False][name](*_arrays())  # nothing runs beside it


def test_a_wait_that_nvcc_may_move_is_refused():
    with pytest.raises(MoecError, match=r"griddepcontrol.* does not clobber"):
        translate_assembly(KERNEL.format(name="moved", body=WAIT.replace('"memory"', "")))
