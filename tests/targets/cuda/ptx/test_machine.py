"""The interpreter of PTX: the project's kernels as nvcc compiled them, faults seeded into them, and invalid programs.

The files ``tests/golden/ptx_*.ptx`` are one kernel of each generation, compiled by nvcc 13.0; ``pytest
--update-golden`` updates them if nvcc is installed. Nightly tests compile the other kernels.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest

from moec.simulators.cuda.kernels import find_kernels
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.cuda.nvcc import compile_source, find_tool

from ..kernels.kernel_runner import source_of
from ..kernels.test_golden import KERNELS, SILU, _product
from . import attention_launches, launches, machine
from .launches import RING_INNER
from .machine import run
from .product_launches import PRODUCTS
from .values import PtxError

GOLDEN = pathlib.Path(__file__).parents[3] / "golden"
RING = "grouped_gemm_wgmma"
LAUNCHES = {
    **launches.LAUNCHES,
    **attention_launches.LAUNCHES,
    **{name: product.launch for name, product in PRODUCTS.items()},
}
STORED = ("grouped_gemv", "grouped_gemm_mma", RING)
needs_nvcc = pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")


def architecture_of(name: str) -> str:
    return "sm_90a" if "wgmma" in name else "sm_80"


def source_of_kernel(name: str) -> str:
    """The CUDA C of a kernel. The kernel with a ring has more k-tiles than stages."""
    if name == RING:
        return source_of(grouped_gemm_wgmma(dataclasses.replace(_product(64), inner=RING_INNER), SILU), "sm_90a")
    if name in PRODUCTS:
        return source_of(PRODUCTS[name].build(), architecture_of(name))
    return source_of({**KERNELS, **attention_launches.KERNELS}[name](), architecture_of(name))


def compiled(source: str, architecture: str) -> str:
    """The PTX of a source, preceded by a line that names the parameters."""
    ((kernel,), (ptx,)) = find_kernels(source), compile_source(source, architecture).ptx.values()
    return f"// {', '.join(name.removesuffix('_ptr') for _, name in kernel.parameters)}\n{ptx}"


@pytest.fixture
def ptx_of(request):
    """A function that reads the stored PTX of a kernel, or compiles it if none is stored."""

    def read(name: str, source: Callable[[], str], architecture: str = "sm_80") -> str:
        path = GOLDEN / f"ptx_{name}.ptx"
        if name in LAUNCHES and name not in STORED:
            if find_tool("nvcc") is None:
                pytest.skip("there is no nvcc")
            return compiled(source(), architecture)
        if request.config.getoption("--update-golden") and find_tool("nvcc") is not None:
            path.write_text(compiled(source(), architecture))
        return path.read_text()

    return read


@pytest.mark.parametrize("name", STORED)
def test_a_kernel_computes_what_it_should(ptx_of, name):
    LAUNCHES[name]().check(ptx_of(name, lambda: source_of_kernel(name), architecture_of(name)))


@needs_nvcc
@pytest.mark.nightly
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_kernel_computes_what_it_should_as_compiled_now(golden, name):
    text = compiled(source_of_kernel(name), architecture_of(name))
    LAUNCHES[name]().check(text)
    if name in STORED:
        golden(f"ptx_{name}.ptx", text)


def test_a_kernel_computes_what_it_should_when_copies_are_early(ptx_of):
    LAUNCHES[RING]().check(ptx_of(RING, lambda: source_of_kernel(RING), "sm_90a"), eager=True)


WITHOUT = {
    ("dispatch", "bar.sync"): "race",
    ("route", "bar.warp.sync"): "race",
    ("grouped_gemm_mma", "bar.sync"): "race",
    ("grouped_gemm_mma", "cp.async.wait_group"): "while a copy to them is under way",
    ("grouped_gemm_mma", "cp.async.commit_group"): "while a copy to them is under way",
    ("attention_few", "bar.sync"): "race",
    ("attention_mma", "bar.sync"): "race",
    ("attention_mma", "cp.async.wait_group"): "while a copy to them is under way",
    ("attention_wgmma", "fence.proxy.async"): "that a thread wrote without passing fence.proxy.async",
    ("attention_wgmma", "cp.async.wait_group"): "a copy to them is under way",
    ("attention_wgmma", "wgmma.fence"): "without a wgmma.fence before it",
    ("attention_wgmma", "mbarrier.arrive"): "deadlock",
    ("simt", "bar.sync"): "race",
    ("simt_mxfp4", "bar.sync"): "race",
    ("wgmma_int4", "bar.sync"): "race: an mbarrier that another thread has initialised",
    ("wgmma_int4", "fence.proxy.async"): "that a thread wrote without passing fence.proxy.async",
    ("wgmma_int4", "mbarrier.arrive"): "deadlock",
    (RING, "bar.sync"): "race: an mbarrier that another thread has initialised",
    (RING, "fence.mbarrier_init"): "initialised without fence.mbarrier_init",
    (RING, "fence.proxy.async"): "that a thread wrote without passing fence.proxy.async",
    (RING, "cp.async.wait_group"): "while a copy to them is under way",
    (RING, "wgmma.fence"): "without a wgmma.fence before it",
    (RING, "wgmma.commit_group"): "overwritten while a product still reads them",
    (RING, "wgmma.wait_group"): "overwritten while a product still reads them",
    (RING, "mbarrier.arrive"): "deadlock",
}


SAMPLE = [case for case in WITHOUT if case[0] in STORED and ("wgmma" not in case[0] or "proxy" in case[1])]


@pytest.mark.parametrize(
    "name, opcode",
    [case if case in SAMPLE else pytest.param(*case, marks=pytest.mark.nightly) for case in WITHOUT],
)
def test_an_instruction_cannot_be_left_out(ptx_of, name, opcode):
    text = ptx_of(name, lambda: source_of_kernel(name), architecture_of(name))
    changed, count = re.subn(rf"^\s*{re.escape(opcode)}\b[^;]*;", "", text, flags=re.MULTILINE)
    assert count
    with pytest.raises(PtxError, match=WITHOUT[name, opcode]):
        LAUNCHES[name]().check(changed)


def test_a_pool_lies_where_it_declares(ptx_of):
    text = ptx_of(RING, lambda: source_of_kernel(RING), "sm_90a")
    with pytest.raises(PtxError, match=r"misaligned: shared address \d+ is no multiple of 128"):
        LAUNCHES[RING]().check(text.replace(".align 1024 .b8", ".align 64 .b8"))


@pytest.mark.nightly
def test_each_fence_for_products_is_needed(ptx_of):
    text = ptx_of(RING, lambda: source_of_kernel(RING), "sm_90a")
    fences = list(re.finditer(r"^\s*fence\.proxy\.async[^;]*;", text, re.MULTILINE))
    assert len(fences) > 1
    for fence in fences:
        with pytest.raises(PtxError, match=r"without passing fence\.proxy\.async"):
            for eager in (True, False):
                changed = text[: fence.start()] + text[fence.end() :]
                LAUNCHES[RING]().check(changed, eager=eager)


def test_a_wait_cannot_allow_more(ptx_of):
    text = ptx_of("grouped_gemm_mma", lambda: source_of_kernel("grouped_gemm_mma"))
    assert "cp.async.wait_group 2;" in text
    with pytest.raises(PtxError, match="while a copy to them is under way"):
        LAUNCHES["grouped_gemm_mma"]().check(text.replace("wait_group 2;", "wait_group 3;"))


# If inline assembly is neither volatile nor declared to access memory, its results depend only on its inputs. nvcc may
# then move a load out of a loop, or after the next store. With either declaration, nvcc 13.0 leaves it in place.
TOLD = {
    "overtaken": """
extern "C" __global__ void kernel(int* from, int* to) {
  __shared__ alignas(64) int values_ptr[32];
  values_ptr[threadIdx.x] = from[threadIdx.x];
  int value;
  asm volatile("ld.shared.s32 %0, [%1];"
               : "=r"(value) : "r"((unsigned)__cvta_generic_to_shared(&values_ptr[threadIdx.x])) : "memory");
  values_ptr[threadIdx.x] = 9;
  to[threadIdx.x] = value + values_ptr[threadIdx.x];
}
""",
    "loaded_again": """
extern "C" __global__ void kernel(int* from, int* to) {
  __shared__ alignas(64) int values_ptr[32];
  int total = 0;
  #pragma unroll 1
  for (int i = 0; i < 3; ++i) {
    values_ptr[threadIdx.x] = from[threadIdx.x] * i;
    __syncwarp();
    int value;
    asm volatile("ld.shared.s32 %0, [%1];"
                 : "=r"(value) : "r"((unsigned)__cvta_generic_to_shared(&values_ptr[threadIdx.x ^ 1])) : "memory");
    total += value;
    __syncwarp();
  }
  to[threadIdx.x] = total;
}
""",
}
UNTOLD = {name: source.replace("asm volatile", "asm").replace('"memory"', "") for name, source in TOLD.items()}
EXPECTED = {"overtaken": lambda x: x + 9, "loaded_again": lambda x: 3 * x[np.arange(32) ^ 1]}


def results_of(ptx: str) -> tuple[np.ndarray, np.ndarray]:
    given, results = np.arange(5, 37, dtype=np.int32), np.zeros(32, np.int32)
    run(ptx, [given, results], grid=1, block=32)
    return given, results


@pytest.mark.parametrize("name", TOLD)
def test_what_nvcc_makes_of_assembly_that_tells_all(ptx_of, name):
    given, results = results_of(ptx_of(name, lambda: TOLD[name]))
    np.testing.assert_array_equal(results, EXPECTED[name](given))


@pytest.mark.parametrize("name", UNTOLD)
def test_what_nvcc_makes_of_assembly_that_does_not_is_noticed(ptx_of, name):
    text = ptx_of(f"{name}_untold", lambda: UNTOLD[name])
    try:
        given, results = results_of(text)
    except PtxError:
        return
    assert not np.array_equal(results, EXPECTED[name](given))


def written_by_hand(body: str) -> str:
    return f"""
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u64 kernel_param_1
)
{{
	.reg .pred %p<4>;
	.reg .b32 %r<8>;
	.reg .b64 %rd<8>;
	.shared .align 16 .b8 values[64];
	ld.param.u64 %rd1, [kernel_param_0];
	ld.param.u64 %rd2, [kernel_param_1];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 4;
	add.s64 %rd4, %rd1, %rd3;
	{body}
	ret;
}}
"""


FINE = {
    "a read-only load of what nobody writes": "ld.global.nc.u32 %r2, [%rd4]; add.s64 %rd5, %rd2, %rd3; "
    "st.global.u32 [%rd5], %r2;",
    "an aligned load": "ld.global.v2.u32 {%r2, %r3}, [%rd1+8];",
    "a barrier between threads": "setp.ne.s32 %p1, %r1, 0; @!%p1 st.shared.u32 [values], 1; bar.sync 0; "
    "ld.shared.u32 %r2, [values];",
}
FAULTS = {
    "st.global.u32 [%rd4], 1; ld.global.nc.u32 %r2, [%rd4];": "a read-only load of bytes of array 0 that the same",
    "ld.global.nc.u32 %r2, [%rd4]; st.global.u32 [%rd4], 1;": "a store to bytes of array 0 that the same launch reads",
    "ld.global.v2.u32 {%r2, %r3}, [%rd1+4];": "misaligned: an address is no multiple of 8",
    "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1+8];": "misaligned: an address is no multiple of 16",
    "st.shared.v2.u32 [values+4], {%r1, %r1};": "misaligned: an address is no multiple of 8",
    "ld.global.u32 %r2, [%rd4+64];": "4 bytes behind the end of array 0",
    "ld.global.u32 %r2, [%rd4+-4];": "addresses in no array",
    "ld.shared.u32 %r2, [values+64];": "outside of shared memory, which has 64 bytes",
    "setp.ne.s32 %p1, %r1, 0; @!%p1 st.shared.u32 [values], 1; ld.shared.u32 %r2, [values];": "race: .* were written",
    "bar.sync 1, 64;": "deadlock: at a barrier",
    "$L: bra.uni $L;": "more than .* steps",
    "redux.sync.add.s32 %r2, %r1, -1;": "redux.sync.add.s32: the interpreter of PTX does not know it",
    "mbarrier.arrive.shared.b64 _, [values], 1;": "byte .* of shared memory holds no mbarrier",
    "add.s32 %q1, %r1, 1;": "register q1 is not declared",
}


@pytest.mark.parametrize("name", FINE)
def test_what_may_be_done(name):
    run(written_by_hand(FINE[name]), [np.zeros(16, np.int32), np.zeros(16, np.int32)], grid=2, block=16)


@pytest.mark.parametrize("body", FAULTS)
def test_a_fault_is_found(monkeypatch, body):
    monkeypatch.setattr(machine, "_MOST_STEPS", 1000)
    with pytest.raises(PtxError, match=FAULTS[body]):
        run(written_by_hand(body), [np.zeros(16, np.int32), np.zeros(16, np.int32)], grid=1, block=16)
