"""Instructions and functions of one thread on its numbers."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from .emulated import load

SOURCE = """
extern "C" __global__ void bits(unsigned* values, unsigned* results) {
  unsigned a = values[0], b = values[1], c = values[2];
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(results[0]) : "r"(a), "r"(b), "r"(0x7315));
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(results[1]) : "r"(a), "r"(b), "r"(c));
  asm("{ .reg .pred p; setp.lt.u32 p, %1, %2; selp.b32 %0, %3, %4, p; }"
      : "=r"(results[2]) : "r"(a), "r"(b), "r"(7), "r"(9));
  results[3] = __dp4a(int(a), int(b), 5);
  results[4] = __popc(a);
  results[5] = __brev(a);
  results[6] = __clz(a);
  results[7] = __byte_perm(a, b, 0xd4);
}
extern "C" __global__ void functions(float* x, float* results) {
  int i = threadIdx.x;
  results[i] = __expf(x[i]);
  results[32 + i] = rsqrtf(fabsf(x[i]) + 1.0f);
  results[64 + i] = max(x[i], 0.5f);
  results[96 + i] = __fdividef(x[i], 3.0f);
  results[128 + i] = normcdff(x[i]);
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(results[160 + i]) : "f"(x[i]));
  results[192 + i] = max(NAN, x[i]);
}
extern "C" __global__ void pack_floats(float* x, unsigned* results) {
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(results[0]) : "f"(x[1]), "f"(x[0]));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(results[1]) : "f"(x[1]), "f"(x[0]));
}
extern "C" __global__ void predicated(int* results) {
  int odd = threadIdx.x % 2;
  results[threadIdx.x] = 1;
  asm("{ .reg .pred p; setp.eq.u32 p, %1, 1; @!p mov.u32 %0, 5; }" : "+r"(results[threadIdx.x]) : "r"(odd));
}
"""


@pytest.fixture(scope="module")
def kernels():
    return load(SOURCE, "bits", "functions", "pack_floats", "predicated")


def test_two_floats_become_halves_of_a_register(kernels):
    """The second operand is the lower half; both are rounded to nearest."""
    x, results = np.float32([1 / 3, -70000.0]), np.zeros(2, np.uint32)
    kernels["pack_floats"](x, results, block=1)
    with np.errstate(over="ignore"):
        expected = [x.astype(np.float16).view(np.uint32), x.astype(ml_dtypes.bfloat16).view(np.uint32)]
    np.testing.assert_array_equal(results, np.concatenate(expected))


def test_bits(kernels):
    a, b, c = 0x8899AABB, 0x11F2C304, 0x0F0F0F0F
    results = np.zeros(8, np.uint32)
    kernels["bits"](np.uint32([a, b, c]), results, block=1)
    signed = [np.uint32([value]).view(np.int8).astype(int) for value in (a, b)]
    expected = [
        int.from_bytes(bytes([(b >> 8) & 255, (a >> 8) & 255, a >> 24, b >> 24]), "little"),
        (a & b) | c,
        9,
        int((signed[0] * signed[1]).sum() + 5) & 0xFFFFFFFF,
        bin(a).count("1"),
        int(f"{a:032b}"[::-1], 2),
        0,
        int.from_bytes(bytes([b & 255, 0xFF if (b >> 8) & 0x80 else 0, a & 255, a & 255]), "little"),
    ]
    np.testing.assert_array_equal(results, np.uint32(expected))


def test_functions(kernels):
    x = np.linspace(-3, 3, 32, dtype=np.float32)
    results = np.zeros((7, 32), np.float32)
    kernels["functions"](x, results)
    normal = [0.5 * math.erfc(-value / math.sqrt(2)) for value in x]
    expected = [np.exp(x), 1 / np.sqrt(abs(x) + 1), np.maximum(x, 0.5), x / 3, normal, np.exp2(x), x]
    np.testing.assert_allclose(results, np.float32(expected), rtol=1e-5, atol=1e-6)


def test_predicates(kernels):
    results = np.zeros(32, np.int32)
    kernels["predicated"](results)
    np.testing.assert_array_equal(results, [5, 1] * 16)
