"""wgmma: products are those of numpy, and are not visible before a wait."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.common.errors import UnsupportedError

from ...products import thinned
from .emulated import load, load_one

COLUMNS = 24
SUMS = COLUMNS // 2
# A [64, 64] and B [COLUMNS, 64] are row-major in shared memory; each row of 128 bytes is swizzled by hand.
HELPERS = """
__forceinline__ __device__ uint64_t descriptor(const void* start, uint64_t leading, uint64_t stride, uint64_t layout) {
  return (__cvta_generic_to_shared(start) >> 4) | leading << 16 | stride << 32 | layout << 62;
}
__forceinline__ __device__ void stage(unsigned short* tile, const unsigned short* values, int rows) {
  for (int i = threadIdx.x; i < rows * 64; i += 128) tile[i ^ (i / 64 % 8 * 8)] = values[i];
}
"""
KERNEL = """
extern "C" __global__ void {name}(unsigned short* a, unsigned short* b, float* given, float* results) {{
  __shared__ alignas(1024) unsigned short a_ptr[64 * 64];
  __shared__ alignas(1024) unsigned short b_ptr[{columns} * 64];
  stage(a_ptr, a, 64);
  stage(b_ptr, b, {columns});
  {publish}
  __syncthreads();
  float sums_ptr[{sums}];
  for (int i = 0; i < {sums}; ++i) sums_ptr[i] = given[i * 128 + threadIdx.x];
  {fence}
  for (int k = 0; k < 4; ++k) {{
    int adds = {adds};
    {load_a}
    asm volatile("{{ .reg .pred p; setp.ne.b32 p, {p}, 0; "
      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{format}.{format} {{{sum_list}}}, {a_list}, {b}, p, {tail}; }}"
      : {outputs} : {inputs}, "l"(descriptor(&b_ptr[k * 16], 1, 64, 1)), "r"(adds));
  }}
  asm volatile("wgmma.commit_group.sync.aligned;");
  for (int i = 0; i < {sums}; ++i) results[i * 128 + threadIdx.x] = sums_ptr[i];
  asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
  for (int i = 0; i < {sums}; ++i) results[({sums} + i) * 128 + threadIdx.x] = sums_ptr[i];
}}
"""
PUBLISH = 'asm volatile("fence.proxy.async.shared::cta;" : : : "memory");'
FENCE = 'asm volatile("wgmma.fence.sync.aligned;" : : : "memory");'
LOAD_A = """
    unsigned r[4];
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = k * 16 + threadIdx.x % 4 * 2;
    for (int i = 0; i < 4; ++i) r[i] = *(unsigned*)&a[(row + i % 2 * 8) * 64 + column + i / 2 * 8];
"""
FORMATS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


def _kernel(
    name: str,
    format_: str,
    *,
    registers: bool = False,
    fence: str = FENCE,
    publish: str = PUBLISH,
    adds: str = "1",
    tail: str | None = None,
):
    count = 4 if registers else 1
    return KERNEL.format(
        name=name,
        format=format_,
        columns=COLUMNS,
        sums=SUMS,
        fence=fence,
        publish=publish,
        adds=adds,
        load_a=LOAD_A if registers else "",
        sum_list=", ".join(f"%{i}" for i in range(SUMS)),
        outputs=", ".join(f'"+f"(sums_ptr[{i}])' for i in range(SUMS)),
        a_list="{" + ", ".join(f"%{SUMS + i}" for i in range(4)) + "}" if registers else f"%{SUMS}",
        inputs=", ".join(f'"r"(r[{i}])' for i in range(4))
        if registers
        else '"l"(descriptor(&a_ptr[k * 16], 1, 64, 1))',
        b=f"%{SUMS + count}",
        p=f"%{SUMS + count + 1}",
        tail=tail or ("1, 1, 0" if registers else "1, 1, 0, 0"),
    )


@pytest.fixture(scope="module", params=["latest", "earliest"])
def completion(request):
    return request.param


@pytest.fixture(scope="module")
def kernels(completion):
    source = HELPERS + _kernel("f16", "f16") + _kernel("bf16", "bf16") + _kernel("registers", "bf16", registers=True)
    source += _kernel("first_replaces", "bf16", adds="k != 0") + _kernel("no_fence", "bf16", fence="")
    source += _kernel("differing", "bf16", adds="threadIdx.x < 64")
    return load(source, "f16", "bf16", "registers", "first_replaces", "no_fence", "differing", completion=completion)


def _numbers(dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, (rows, 64)).astype(dtype) for rows in (64, COLUMNS))
    return a, b, rng.integers(-8, 8, (64, COLUMNS)).astype(np.float32)


def _by_thread(matrix: np.ndarray) -> np.ndarray:
    """The accumulators [SUMS, 128] of the threads for a matrix [64, COLUMNS]."""
    thread, i = np.arange(128)[None], np.arange(SUMS)[:, None]
    row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    return matrix[row, i // 4 * 8 + thread % 4 * 2 + i % 2]


@pytest.mark.parametrize("name", ["f16", "bf16", "registers", "first_replaces"])
def test_products(kernels, completion, name):
    a, b, sums = _numbers(FORMATS.get(name, ml_dtypes.bfloat16))
    results = np.zeros((2, SUMS, 128), np.float32)
    kernels[name](a.view(np.uint16), b.view(np.uint16), _by_thread(sums), results, block=128)
    product = a.astype(np.float32) @ b.astype(np.float32).T
    expected = _by_thread(product if name == "first_replaces" else product + sums)
    np.testing.assert_array_equal(results[1], expected)  # integers, so exact
    # The last warp to issue a product may see it at once; the others have moved on by then.
    early = [np.array_equal(results[0][:, warp], expected[:, warp]) for warp in np.split(np.arange(128), 4)]
    assert early.count(True) == (1 if completion == "earliest" else 0)
    assert (results[0] == _by_thread(sums)).mean() > 0.7


@pytest.mark.parametrize(
    ("name", "block", "problem"),
    [
        ("no_fence", 128, "wgmma.mma_async without a wgmma.fence before it"),
        ("differing", 128, "the threads of a warp group give different descriptors or scales"),
        ("bf16", 96, "needs a warp group of 128 threads"),
    ],
)
def test_misuse_is_an_error(kernels, name, block, problem):
    a, b, sums = _numbers(ml_dtypes.bfloat16)
    with pytest.raises(RuntimeError, match=problem):
        kernels[name](a.view(np.uint16), b.view(np.uint16), sums, np.zeros((2, SUMS, 128), np.float32), block=block)


@thinned("publish", [PUBLISH, ""], 2)
def test_what_threads_stored_has_to_be_published(publish):
    kernel = load_one(HELPERS + _kernel("stored", "bf16", publish=publish), "stored", watch=True)
    a, b, sums = _numbers(ml_dtypes.bfloat16)
    results = np.zeros((2, SUMS, 128), np.float32)
    arguments = (a.view(np.uint16), b.view(np.uint16), _by_thread(sums), results)
    if publish:
        kernel(*arguments, block=128)
        assert results[1].any()
        return
    with pytest.raises(RuntimeError, match=r"wgmma: byte 0 of shared memory is read, .* without passing fence\.proxy"):
        kernel(*arguments, block=128)


def test_a_transposed_first_operand_has_no_model():
    with pytest.raises(UnsupportedError, match="no model of negated operands and of a transposed A"):
        load_one(HELPERS + _kernel("transposed", "bf16", tail="1, 1, 1, 0"), "transposed")
