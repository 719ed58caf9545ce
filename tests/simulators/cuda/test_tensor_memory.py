"""Tensor memory: allocation, copies and products as the PTX manual has them; each rule that is broken is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moec.common.errors import UnsupportedError

from .barrier_functions import BARRIER_FUNCTIONS
from .emulated import Kernel, load_one
from .mutation import NO_FAULT, Fault, Mutants
from .tensor_functions import TENSOR_FUNCTIONS, instruction_descriptor

INSTRUCTION = instruction_descriptor(128, 32, 1)
SOURCE = (
    BARRIER_FUNCTIONS
    + TENSOR_FUNCTIONS
    + f"""
extern "C" __global__ void __launch_bounds__(128) product(unsigned char* x, unsigned char* w, float* y) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  unsigned char* w_tile = pool_ptr + 128 * 128;
  uint64_t* done = (uint64_t*)(w_tile + 32 * 128);
  unsigned* place = (unsigned*)(done + 1);
  int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) init(done, 1);
  publish_barriers();
  if (warp == 0) {{
    allocate(place, 32);
    relinquish();
  }}
  for (int i = threadIdx.x * 16; i < 160 * 128; i += 128 * 16)
    *(uint4*)&pool_ptr[i ^ (i / 128 % 8 * 16)] = *(const uint4*)&(i < 128 * 128 ? x : w - 128 * 128)[i];
  publish();
  __syncthreads();
  unsigned sums = *place;
  if (threadIdx.x == 0) {{
    for (int step = 0; step < 4; ++step)
      multiply_f16(sums, operand(pool_ptr + step * 32), operand(w_tile + step * 32), {INSTRUCTION}u, 0, step > 0);
    commit(done);
  }}
  __syncthreads();
  wait(done, 0);
  fence_after();
  for (int column = 0; column < 32; column += 8) {{
    unsigned r[8];
    load_columns(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], sums + (warp * 32 << 16) + column);
    wait_for_loads();
    for (int i = 0; i < 8; ++i) y[threadIdx.x * 32 + column + i] = __uint_as_float(r[i]);
  }}
  __syncthreads();
  if (warp == 0) deallocate(sums, 32);
}}
"""
)
COMMIT = "    commit(done);\n  }\n"
WAIT = "  wait(done, 0);\n"


def of_descriptor(bits: int) -> Fault:
    return Fault(f"{INSTRUCTION}u", f"{bits}u")


ERRORS = {
    "no wait": (Fault(WAIT, ""), r"tcgen05\.ld: column 480 .* is still written by an operation under way"),
    "no commit": (Fault("    commit(done);\n", ""), "deadlock: .* 128 at an mbarrier"),
    "commit of another thread": (
        Fault(COMMIT, "  }\n  if (threadIdx.x == 32) commit(done);\n"),
        r"tcgen05\.ld: column 480 .* still written",
    ),
    "products of two threads": (
        Fault("if (threadIdx.x == 0) {\n    for", "if (threadIdx.x < 2) {\n    for"),
        r"tcgen05\.mma: column 480 .* still written by an operation of another thread",
    ),
    "lanes of another warp": (Fault("(warp * 32 << 16)", "(32 << 16)"), r"warp \d reaches .* on, not from lane 32"),
    "columns that are not allocated": (Fault("+ column)", "+ 8 + column)"), "ld: column 512 .* is not allocated"),
    "address taken for granted": (Fault("sums = *place", "sums = 0"), "mma: column 0 .* is not allocated"),
    "no deallocation": (Fault("if (warp == 0) deallocate(sums, 32)", ""), "without tcgen05.dealloc of the 32 columns"),
    "deallocation of more": (Fault("deallocate(sums, 32)", "deallocate(sums, 64)"), "64 columns .* not allocated so"),
    "no wait for loads": (Fault("    wait_for_loads();\n", ""), "dealloc: column 480 .* is still used by an operation"),
    "allocation of 48": (Fault("allocate(place, 32)", "allocate(place, 48)"), "48 columns are no power of two"),
    "allocation too late": (
        Fault("    allocate(place, 32);\n    relinquish();\n", "    relinquish();\n    allocate(place, 32);\n"),
        "tcgen05.alloc behind tcgen05.relinquish_alloc_permit",
    ),
    "half a warp": (Fault("if (warp == 0) deall", "if (threadIdx.x < 16) deall"), "dealloc: needs 32 lanes"),
    "another swizzle": (
        Fault("(uint64_t)2 << 61", "(uint64_t)4 << 61"),
        "swizzle is 64 bytes; .* 128 bytes alone",
    ),
    "Hopper's descriptor": (Fault("(uint64_t)1 << 46", "(uint64_t)0"), "descriptor of version 0; expected 1"),
    "base offset": (Fault("(uint64_t)1 << 46", "(uint64_t)9 << 46"), "no model of base offsets"),
    "96 rows": (of_descriptor(instruction_descriptor(96, 32, 1)), "96 x 32 sums; expected 64 rows"),
    "24 columns": (of_descriptor(instruction_descriptor(128, 24, 1)), "128 x 24 sums; expected"),
    "no columns": (of_descriptor(instruction_descriptor(128, 0, 1)), "128 x 0 sums; expected"),
    "rows one after the other": (
        of_descriptor(INSTRUCTION | 1 << 15),
        "sparse, negated and transposed operands .*0x08088490",
    ),
    "negated operand": (of_descriptor(INSTRUCTION | 1 << 13), "no model of sparse, negated and transposed"),
    "another format": (of_descriptor(instruction_descriptor(128, 32, 2)), "no model of operands of these formats"),
    "sums of 16 bits": (of_descriptor(INSTRUCTION & ~16), "no model of sums other than f32"),
    "disabled lanes": (Fault("u, 0, step", "u, 1, step"), "no model of lanes whose sums stay as they are"),
    "sums in the middle": (Fault("multiply_f16(sums,", "multiply_f16(sums + (16 << 16),"), "cannot begin at lane 16"),
    "no fence": (Fault("  fence_after();\n", ""), "ld: column 480 .* passed no tcgen05.fence::after_thread_sync since"),
    "commit to no barrier": (Fault("commit(done)", "commit(done - 1)"), r"tcgen05\.commit: byte .* holds no mbarrier"),
    "operands beyond the pool": (
        Fault("operand(w_tile +", "operand(w_tile + 8192 +"),
        "mma: bytes .* of shared",
    ),
}
WRONG = {
    "another step": Fault("operand(w_tile + step * 32)", "operand(w_tile + step * 16)"),
    "no swizzle": Fault("i ^ (i / 128 % 8 * 16)", "i"),
    "sums that nobody began": Fault("step > 0", "1"),
}
UNSEEN = {
    "operands that nobody published": (
        Fault("  publish();\n", "  publish_barriers();\n"),
        "mma: byte 0 .* is read, which a thread wrote without passing fence.proxy.async",
    ),
    "operands overwritten": (
        Fault(WAIT, "  if (threadIdx.x == 0) pool_ptr[0] = 0;\n" + WAIT),
        "a store: byte 0 .* is still read by a product",
    ),
}
"""Faults of plain stores, which are watched on request alone."""
BY_CHANCE = Fault("  __syncthreads();\n" + WAIT, "")
"""Where products complete early, the sums are there although nobody has waited for them."""


class Product:
    """Inputs and expected sums."""

    def __init__(self) -> None:
        numbers = np.random.default_rng(0).integers(-8, 8, (160, 64)).astype(np.float32)
        self.halves = (numbers.view(np.uint32) >> 16).astype(np.uint16)  # bf16; the numbers are exact
        self.expected = numbers[:128] @ numbers[128:].T

    def sums(self, kernel: Kernel, **schedule: Any) -> np.ndarray:
        """The sums in an order of threads. Raises RuntimeError as the kernel does."""
        y = np.zeros((128, 32), np.float32)
        arrays = self.halves[:128].copy(), self.halves[128:].copy(), y
        kernel(*arrays, block=128, dynamic_bytes=160 * 128 + 16, schedule=schedule)
        return y


@pytest.fixture(scope="module")
def product() -> Product:
    return Product()


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    return Mutants(SOURCE, {name: fault for name, (fault, _) in ERRORS.items()} | WRONG)


LATEST = ("latest", 0, False)


def test_sums(product, mutants):
    np.testing.assert_array_equal(product.sums(mutants.kernel(NO_FAULT, LATEST)), product.expected)


@pytest.mark.parametrize("fault", ERRORS)
def test_a_broken_rule_is_an_error(product, mutants, fault):
    with pytest.raises(RuntimeError, match=rf"emulated kernel product_\d+: .*{ERRORS[fault][1]}"):
        product.sums(mutants.kernel(fault, LATEST))


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_operands_make_wrong_sums(product, mutants, fault):
    assert not np.array_equal(product.sums(mutants.kernel(fault, LATEST)), product.expected)


@pytest.fixture(scope="module")
def watched() -> Mutants:
    return Mutants(SOURCE, {name: fault for name, (fault, _) in UNSEEN.items()} | {"by chance": BY_CHANCE})


def test_watched_sums(product, watched):
    np.testing.assert_array_equal(product.sums(watched.kernel(NO_FAULT, ("latest", 0, True))), product.expected)


@pytest.mark.parametrize("fault", UNSEEN)
def test_a_fault_of_stores_is_an_error_where_they_are_watched(product, watched, fault):
    with pytest.raises(RuntimeError, match=UNSEEN[fault][1]):
        product.sums(watched.kernel(fault, ("latest", 0, True)))


MATRICES = Fault(
    SOURCE[SOURCE.index("  for (int column") : SOURCE.index("  __syncthreads();\n  if (warp == 0) dealloc")],
    """  for (int step = 0; step < 4; ++step) {
    unsigned r[8];
    int lane = warp * 32 + step / 2 * 16, column = step % 2 * 16;
    load_matrices(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], sums + (lane << 16) + column);
    wait_for_loads();
    for (int i = 0; i < 8; ++i) {
      int row = lane + i / 2 % 2 * 8 + threadIdx.x % 32 / 4;
      y[row * 32 + column + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2] = __uint_as_float(r[i]);
    }
  }
""",
)
"""The sums as matrices of 8 columns, which a warp holds like the sums of mma.sync (16x256b)."""


@pytest.fixture(scope="module")
def matrices() -> Mutants:
    eighth_lane = Fault(MATRICES.old, MATRICES.new.replace("step / 2 * 16", "step / 2 * 8"))
    no_wait = Fault(MATRICES.old, MATRICES.new.replace("    wait_for_loads();\n", ""))
    return Mutants(SOURCE, {"matrices": MATRICES, "eighth lane": eighth_lane, "no wait": no_wait})


@pytest.mark.parametrize("completion", ["latest", "earliest"])
def test_sums_as_matrices(product, matrices, completion):
    sums = product.sums(matrices.kernel("matrices", (completion, 0, False)))
    np.testing.assert_array_equal(sums, product.expected)


@pytest.mark.parametrize(
    ("fault", "message"), [("eighth lane", "not from lane (8|40|72|104)$"), ("no wait", "still used by an operation")]
)
def test_matrices_begin_at_half_of_the_lanes_and_are_waited_for(product, matrices, fault, message):
    with pytest.raises(RuntimeError, match=message):
        product.sums(matrices.kernel(fault, LATEST))


def test_sums_that_are_there_by_chance(product, watched):
    with pytest.raises(RuntimeError, match=r"ld: column 480 .* was written by warp 0 .* no barrier lies between them"):
        product.sums(watched.kernel("by chance", ("earliest", 0, True)), behind=[1, 2, 3])


MOVES = (
    BARRIER_FUNCTIONS
    + TENSOR_FUNCTIONS
    + """
extern "C" __global__ void moves(unsigned* numbers, int waits, int fences) {
  __shared__ unsigned place[2];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) allocate(place, 512);
  __syncthreads();
  unsigned first = place[0] + (warp % 4 * 32 << 16);
  if (warp < 4) {
    for (int i = 0; i < 8; i += 2) store_columns(first + i, numbers[i * 128 + threadIdx.x],
                                                 numbers[(i + 1) * 128 + threadIdx.x]);
    if (waits) wait_for_stores();
    if (fences & 1) fence_before();
  }
  __syncthreads();
  if (warp >= 4) {
    unsigned r[8];
    if (fences & 2) fence_after();
    load_columns(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], first);
    wait_for_loads();
    for (int i = 0; i < 8; ++i) numbers[i * 128 + warp % 4 * 32 + lane] = r[i] + 1;
  }
  __syncthreads();
  if (warp == 0) deallocate(place[0], 512);
}
extern "C" __global__ void shares(int gives_back) {
  __shared__ unsigned place[2];
  int warp = threadIdx.x / 32;
  if (warp == 0) {
    allocate(&place[0], 512);
    if (gives_back) deallocate(place[0], 512);
  } else {
    allocate(&place[1], 32);
    deallocate(place[1], 32);
  }
}
"""
)


@pytest.fixture(scope="module", params=["latest", "earliest"])
def moves(request) -> Kernel:
    return load_one(MOVES, "moves", completion=request.param)


def test_numbers_go_from_one_warp_to_another(moves):
    numbers = np.arange(8 * 128, dtype=np.uint32)
    moves(numbers, 1, 3, block=256)
    np.testing.assert_array_equal(numbers, np.arange(8 * 128) + 1)


@pytest.mark.parametrize(
    ("waits", "fences", "problem"),
    [
        (0, 3, "ld: column 0 of tensor memory is still written|a warp ends without tcgen05.wait::st"),
        (1, 2, "column 0 .* was written by warp . of the cluster, without tcgen05.fence::before_thread_sync behind it"),
        (1, 1, "column 0 .* was written by warp .* passed no tcgen05.fence::after_thread_sync since"),
    ],
)
def test_numbers_that_may_not_be_there(moves, waits, fences, problem):
    with pytest.raises(RuntimeError, match=problem):
        moves(np.arange(8 * 128, dtype=np.uint32), waits, fences, block=256)


def test_an_allocation_waits_for_columns():
    kernel = load_one(MOVES, "shares")
    kernel(1, block=64)
    with pytest.raises(RuntimeError, match=r"deadlock: .* at tcgen05.alloc, for columns that nobody gives back"):
        kernel(0, block=64)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"l"(a)', '"r"((unsigned)a)', "no model of an A that lies in tensor memory"),
        ("{%4, %4, %4, %4}, ps0;", "{%4, %4, %4, %4}, ps0, 1;", "no model of scaled sums"),
        ("tcgen05.mma.cta_group", "tcgen05.mma.ws.cta_group", r"tcgen05\.mma\.ws\.\S+: the CUDA emulator has no model"),
        ("32x32b.x8", "16x64b.x8", r"tcgen05\.ld\.\S+: the CUDA emulator has no model"),
        ("one.shared::cluster.b64", "one.b64", r"tcgen05\.commit\.\S+: the CUDA emulator has no model"),
    ],
)
def test_other_forms_are_refused(old, new, problem):
    assert old in SOURCE
    with pytest.raises(UnsupportedError, match=problem):
        load_one(SOURCE.replace(old, new), "product")
