"""ldmatrix, stmatrix and mma: fragments have the layouts of the PTX manual, and products are those of numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.common.errors import UnsupportedError

from .emulated import load, load_one

# Kernels take and return the registers of all lanes as arrays [registers, 32].
LOAD = """
extern "C" __global__ void load{suffix}(unsigned short* tiles, unsigned* registers) {{
  __shared__ alignas(64) unsigned short tiles_ptr[256];
  for (int i = threadIdx.x; i < 256; i += 32) tiles_ptr[i] = tiles[i];
  __syncthreads();
  unsigned r[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4{suffix_ptx}.shared.b16 {{%0, %1, %2, %3}}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(__cvta_generic_to_shared(&tiles_ptr[threadIdx.x * 8])) : "memory");
  for (int i = 0; i < 4; ++i) registers[i * 32 + threadIdx.x] = r[i];
}}
extern "C" __global__ void store{suffix}(unsigned short* tiles, unsigned* registers) {{
  __shared__ alignas(64) unsigned short tiles_ptr[256];
  asm volatile("stmatrix.sync.aligned.m8n8.x4{suffix_ptx}.shared.b16 [%0], {{%1, %2, %3, %4}};"
               : : "r"(__cvta_generic_to_shared(&tiles_ptr[threadIdx.x * 8])), "r"(registers[threadIdx.x]),
               "r"(registers[32 + threadIdx.x]), "r"(registers[64 + threadIdx.x]), "r"(registers[96 + threadIdx.x])
               : "memory");
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += 32) tiles[i] = tiles_ptr[i];
}}
"""
MULTIPLY = """
extern "C" __global__ void multiply_{name}(unsigned* a, unsigned* b, {sum}* c, {sum}* d) {{
  int lane = threadIdx.x;
  {sum} r[4];
  asm volatile("mma.sync.aligned.m16n8k{depth}.row.col.{types} "
               "{{%0, %1, %2, %3}}, {{{a_list}}}, {{{b_list}}}, {{{c_list}}};"
               : "={letter}"(r[0]), "={letter}"(r[1]), "={letter}"(r[2]), "={letter}"(r[3])
               : {inputs});
  for (int i = 0; i < 4; ++i) d[i * 32 + lane] = r[i];
}}
"""
FORMATS = {  # depth, types, elements per register
    "f16": (16, "f32.f16.f16.f32", np.float16),
    "bf16": (16, "f32.bf16.bf16.f32", ml_dtypes.bfloat16),
    "bf16_short": (8, "f32.bf16.bf16.f32", ml_dtypes.bfloat16),
    "tf32": (8, "f32.tf32.tf32.f32", np.float32),
    "e4m3": (32, "f32.e4m3.e4m3.f32", ml_dtypes.float8_e4m3fn),
    "s8": (32, "s32.s8.s8.s32", np.int8),
}


def _multiply_source(name: str) -> str:
    depth, types, dtype = FORMATS[name]
    columns = depth * np.dtype(dtype).itemsize // 16  # registers of B
    letter, total = ("r", "int") if name == "s8" else ("f", "float")
    operands = [f'"r"(a[{r} * 32 + lane])' for r in range(2 * columns)]
    operands += [f'"r"(b[{r} * 32 + lane])' for r in range(columns)]
    operands += [f'"{letter}"(c[{r} * 32 + lane])' for r in range(4)]
    numbers = [f"%{4 + i}" for i in range(len(operands))]
    return MULTIPLY.format(
        name=name,
        depth=depth,
        types=types,
        sum=total,
        letter=letter,
        inputs=", ".join(operands),
        a_list=", ".join(numbers[: 2 * columns]),
        b_list=", ".join(numbers[2 * columns : 3 * columns]),
        c_list=", ".join(numbers[3 * columns :]),
    )


@pytest.fixture(scope="module")
def kernels():
    source = LOAD.format(suffix="", suffix_ptx="") + LOAD.format(suffix="_transposed", suffix_ptx=".trans")
    source += "".join(map(_multiply_source, FORMATS))
    names = ["load", "store", "load_transposed", "store_transposed", *(f"multiply_{name}" for name in FORMATS)]
    return load(source, *names)


@pytest.mark.parametrize("suffix", ["", "_transposed"])
def test_tiles_are_loaded_and_stored(kernels, suffix):
    tiles = np.arange(256, dtype=np.uint16)
    registers = np.zeros((4, 32), np.uint32)
    kernels[f"load{suffix}"](tiles, registers)
    each = tiles.reshape(4, 8, 8)
    rows = each.transpose(0, 2, 1) if suffix else each
    np.testing.assert_array_equal(registers, np.ascontiguousarray(rows).view(np.uint32).reshape(4, 32))
    back = np.zeros_like(tiles)
    kernels[f"store{suffix}"](back, registers)
    np.testing.assert_array_equal(back, tiles)


def _a_registers(a: np.ndarray) -> np.ndarray:
    """The registers [count, 32] of A [16, depth]: rows 0 to 7 and 8 to 15 in turn, then the next four words."""
    words = np.ascontiguousarray(a).view(np.uint32)
    quarters = [words[half * 8 : half * 8 + 8, at : at + 4] for at in range(0, words.shape[1], 4) for half in (0, 1)]
    return np.stack([quarter.reshape(32) for quarter in quarters])


def _b_registers(b: np.ndarray) -> np.ndarray:
    """The registers [count, 32] of B [depth, 8]."""
    words = np.ascontiguousarray(b.T).view(np.uint32)
    return np.stack([words[:, at : at + 4].reshape(32) for at in range(0, words.shape[1], 4)])


def _c_registers(c: np.ndarray) -> np.ndarray:
    """The registers [4, 32] of C [16, 8]."""
    return np.stack([c[half * 8 : half * 8 + 8, i::2].reshape(32) for half in (0, 1) for i in (0, 1)])


@pytest.mark.parametrize("name", FORMATS)
def test_products(kernels, name):
    depth, _, dtype = FORMATS[name]
    rng = np.random.default_rng(0)
    numbers = [rng.integers(-100, 100, shape).astype(dtype) for shape in ((16, depth), (depth, 8))]
    total = np.int32 if name == "s8" else np.float32
    a, b = numbers
    c = rng.integers(-100, 100, (16, 8)).astype(total)
    d = np.zeros((4, 32), total)
    kernels[f"multiply_{name}"](_a_registers(a), _b_registers(b), _c_registers(c), d)
    np.testing.assert_array_equal(d, _c_registers(a.astype(total) @ b.astype(total) + c))  # integers, so exact


def test_products_need_a_whole_warp(kernels):
    empty = np.zeros((4, 32), np.uint32)
    with pytest.raises(RuntimeError, match=r"mma\.sync: needs 32 lanes, lanes 0x0000ffff carry it out"):
        kernels["multiply_f16"](empty, empty, empty, empty, block=16)


def test_rows_are_aligned():
    source = """
extern "C" __global__ void misaligned(unsigned* result) {
  __shared__ alignas(64) unsigned tile_ptr[64];
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(result[threadIdx.x])
               : "r"(__cvta_generic_to_shared(&tile_ptr[1])) : "memory");
}
"""
    with pytest.raises(RuntimeError, match="ldmatrix: shared address 4 is no multiple of 16"):
        load_one(source, "misaligned")(np.zeros(32, np.uint32))


def test_a_shape_without_a_model_is_refused():
    source = _multiply_source("f16").replace("m16n8k16", "m8n8k4")
    with pytest.raises(UnsupportedError, match=r"PTX instruction mma\.sync\.aligned\.m8n8k4.*no model"):
        load_one(source, "multiply_f16")
