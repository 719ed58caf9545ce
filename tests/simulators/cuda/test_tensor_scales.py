"""Products in tensor memory whose operands have block scales, which are copied there before: those of numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.targets.cuda import nvcc

from .emulated import Kernel, load, load_one
from .mutation import Fault, Mutants
from .tensor_functions import SCALE_FUNCTIONS
from .tensor_product import FUNCTIONS as TENSOR_FUNCTIONS

FUNCTIONS = {group: text + SCALE_FUNCTIONS[group] for group, text in TENSOR_FUNCTIONS.items()}
E2M1, E4M3, E8M0 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
TILES, STEPS = 2, 4


def columns_of(group: int) -> int:
    return {1: 72, 2: 64}[group]


SOURCE = """
extern "C" __global__ void {cluster}__launch_bounds__(128) {name}(
    unsigned char* x, unsigned char* w, unsigned* scales_of_x, unsigned* scales_of_w, float* y, int bytes) {{
  extern __shared__ __align__(1024) unsigned char pool_ptr[];
  unsigned char* x_tile = pool_ptr;
  unsigned char* w_tile = pool_ptr + {tiles} * 128 * 128;
  unsigned* scales = (unsigned*)(w_tile + {tiles} * {columns} * 128);
  uint64_t* done = (uint64_t*)(scales + {tiles} * {words} * 2 * 128);
  unsigned* place = (unsigned*)(done + 1);
  int warp = threadIdx.x / 32, rank = rank_of_block();
  if (threadIdx.x == 0) init(done, 1);
  publish_barriers();
  if (warp == 0) {{ allocate(place, 128); relinquish(); }}
  for (int tile = 0; tile < {tiles}; ++tile) {{
    for (int i = threadIdx.x * 16; i < 128 * 128; i += 128 * 16)
      *(uint4*)&x_tile[tile * 128 * 128 + (i ^ (i / 128 % 8 * 16))] =
          *(uint4*)&x[(rank * 128 + i / 128) * {tiles} * 128 + tile * 128 + i % 128];
    for (int i = threadIdx.x * 16; i < {columns} * 128; i += 128 * 16)
      *(uint4*)&w_tile[tile * {columns} * 128 + (i ^ (i / 128 % 8 * 16))] =
          *(uint4*)&w[(rank * {columns} + i / 128) * {tiles} * 128 + tile * 128 + i % 128];
    for (int word = 0; word < {words}; ++word) {{
      unsigned* of_word = scales + (tile * {words} + word) * 2 * 128;
      int row = threadIdx.x, at = row % 32 * 4 + row / 32, from = tile * {words} + word;
      of_word[at] = scales_of_x[(rank * 128 + row) * {tiles} * {words} + from];
      of_word[128 + at] = row < {columns} * {group} ? scales_of_w[row * {tiles} * {words} + from] : 0;
    }}
  }}
  publish();
  __syncthreads();
  meet();
  unsigned sums = *place;
  if (threadIdx.x == 0 && rank == 0) {{
    for (int tile = 0; tile < {tiles}; ++tile) {{
      for (int word = 0; word < {words}; ++word) {{
        copy_scales(sums + {all_columns} + word * 4, scales + (tile * {words} + word) * 2 * 128);
        copy_scales(sums + {all_columns} + 16 + word * 4, scales + ((tile * {words} + word) * 2 + 1) * 128);
      }}
      for (int step = 0; step < 4; ++step) {{
        int first = step * {scales}, word = first / 4 * 4;
        unsigned instruction = {instruction}u | first % 4 << 29 | first % 4 << 4;
        multiply_{kind}(sums, operand(x_tile + tile * 128 * 128 + step * 32),
                        operand(w_tile + tile * {columns} * 128 + step * 32), instruction,
                        sums + {all_columns} + word, sums + {all_columns} + 16 + word, tile + step > 0);
      }}
    }}
    commit(done);
  }}
  wait(done, 0);
  fence_after();
  for (int column = 0; column < {all_columns}; column += 8) {{
    unsigned r[8];
    load_columns(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], sums + (warp * 32 << 16) + column);
    wait_for_loads();
    for (int i = 0; i < 8; ++i)
      y[(rank * 128 + threadIdx.x) * {all_columns} + column + i] = __uint_as_float(r[i]);
  }}
  __syncthreads();
  meet();
  if (warp == 0) deallocate(sums, 128);
}}
"""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of products: its types, and the scales that a row has for each product."""

    name: str
    operands: Any
    scale: Any
    scales: int
    formats: int
    """Bits of the instruction descriptor."""

    @property
    def depth(self) -> int:
        """The numbers of a row, in all tiles."""
        return TILES * STEPS * (32 if self.operands is E4M3 else 64)

    def instruction(self, group: int = 1) -> int:
        """The instruction descriptor, without the bytes of the scales."""
        return self.formats | columns_of(group) // 8 << 17 | 8 * group << 24

    def text(self, name: str, group: int = 1) -> str:
        columns = columns_of(group)
        return SOURCE.format(
            name=name,
            kind=self.name,
            cluster="__cluster_dims__(2, 1, 1) " if group == 2 else "",
            group=group,
            columns=columns // group,
            all_columns=columns,
            tiles=TILES,
            words=self.scales,
            scales=self.scales,
            instruction=self.instruction(group),
        )

    def numbers(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Operands [rows, depth], and their scales."""
        random = np.random.default_rng(rows)
        if self.operands is E2M1:
            numbers = random.integers(0, 16, (rows, self.depth)).astype(np.uint8).view(E2M1)
        else:
            numbers = random.normal(size=(rows, self.depth)).astype(E4M3)
        low, high = (120, 134) if self.scale is E8M0 else (0, 0x7F)
        codes = random.integers(low, high, (rows, TILES * STEPS * self.scales)).astype(np.uint8)
        return numbers, codes.view(self.scale)

    def packed(self, numbers: np.ndarray) -> np.ndarray:
        codes = np.ascontiguousarray(numbers).view(np.uint8)
        return codes[:, ::2] | codes[:, 1::2] << 4 if self.operands is E2M1 else codes


E2M1_BITS, E8M0_BIT = 1 << 7 | 1 << 10, 1 << 23
KINDS = {
    kind.name: kind
    for kind in (
        Kind("mxf8f6f4", E4M3, E8M0, 1, E8M0_BIT),
        Kind("mxf4", E2M1, E8M0, 2, E2M1_BITS | E8M0_BIT),
        Kind("mxfp4", E2M1, E8M0, 2, E2M1_BITS | E8M0_BIT),
        Kind("nvfp4", E2M1, E4M3, 4, E2M1_BITS),
    )
}


def run(kernel: Kernel, kind: Kind, group: int, x: np.ndarray, w: np.ndarray, *scales: np.ndarray) -> np.ndarray:
    rows, columns = len(x), len(w)
    y = np.zeros((rows, columns), np.float32)
    words = [np.ascontiguousarray(codes).view(np.uint32) for codes in scales]
    operands = [np.ascontiguousarray(kind.packed(numbers)) for numbers in (x, w)]
    dynamic_bytes = TILES * (128 + columns // group) * 128 + TILES * kind.scales * 1024 + 16
    kernel(*operands, *words, y, 0, grid=group, block=128, dynamic_bytes=dynamic_bytes)
    return y


def scaled(numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float64) * scales.astype(np.float64).repeat(numbers.shape[1] // scales.shape[1], 1)


@pytest.fixture(scope="module", params=["latest", pytest.param("earliest", marks=pytest.mark.nightly)])
def kernels(request) -> dict[int, dict[str, Kernel]]:
    alone = FUNCTIONS[1] + "".join(kind.text(name) for name, kind in KINDS.items())
    pair = FUNCTIONS[2] + KINDS["nvfp4"].text("nvfp4", 2)
    return {
        1: load(alone, *KINDS, completion=request.param),
        2: load(pair, "nvfp4", completion=request.param),
    }


@pytest.mark.parametrize(("name", "group"), [*((name, 1) for name in KINDS), ("nvfp4", 2)])
def test_sums(kernels, name, group):
    kind = KINDS[name]
    (x, scales_of_x), (w, scales_of_w) = kind.numbers(128 * group), kind.numbers(columns_of(group))
    expected = scaled(x, scales_of_x) @ scaled(w, scales_of_w).T
    actual = run(kernels[group][name], kind, group, x, w, scales_of_x, scales_of_w)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_scale_belongs_to_its_row(kernels):
    """A scale that is no number makes that of one row, or of one column."""
    kind = KINDS["nvfp4"]
    (x, scales_of_x), (w, scales_of_w) = kind.numbers(128), kind.numbers(columns_of(1))
    scales_of_x.view(np.uint8)[77, 3] = scales_of_w.view(np.uint8)[68, 30] = 0x7F
    actual = run(kernels[1]["nvfp4"], kind, 1, x, w, scales_of_x, scales_of_w)
    expected = np.zeros((128, columns_of(1)), bool)
    expected[77], expected[:, 68] = True, True
    np.testing.assert_array_equal(np.isnan(actual), expected)


def test_a_scale_with_a_sign(kernels):
    kind = KINDS["nvfp4"]
    (x, scales_of_x), (w, scales_of_w) = kind.numbers(128), kind.numbers(columns_of(1))
    scales_of_x.view(np.uint8)[5, 5] = 0x81
    with pytest.raises(RuntimeError, match="scale 0x00000081 of ue4m3 has a sign"):
        run(kernels[1]["nvfp4"], kind, 1, x, w, scales_of_x, scales_of_w)


MXFP4 = KINDS["mxfp4"]
ISSUER = "  if (threadIdx.x == 0 && rank == 0) {\n"


def of_descriptor(bits: int) -> Fault:
    return Fault(f"{MXFP4.instruction()}u", f"{bits}u")


FAULTS = {
    "scales of the other format": (
        of_descriptor(MXFP4.instruction() & ~E8M0_BIT),
        "no model of instruction descriptor",
    ),
    "64 rows": (of_descriptor(MXFP4.instruction() ^ 12 << 24), "64 x 72 sums with block scales; expected 128 rows"),
    "a byte in between": (Fault("first % 4 << 29", "1 << 29"), "scales from byte 1 on; expected a multiple of 2"),
    "scales that nobody allocated": (Fault("sums + 72 + word,", "sums + 128,"), "mma: column 512 .* is not allocated"),
    "scales of lanes in between": (Fault("sums + 72 + word,", "sums + (16 << 16),"), "scales cannot begin at lane 16"),
    "copies to lanes in between": (Fault("(sums + 72 +", "(sums + (32 << 16) + 72 +", 2), "cannot begin at lane 32"),
    "sums in the place of scales": (Fault("sums + 72 + word,", "sums,"), "mma: column 384 .* is still read"),
    "copies of another thread": (
        Fault(ISSUER, "  if (threadIdx.x == 32) copy_scales(sums + 72, scales);\n" + ISSUER),
        r"tcgen05\.cp: column 456 .* is still read by an operation under way",
    ),
    "swizzled scales": (
        Fault("(uint64_t)8 << 32 |", "(uint64_t)2 << 61 |"),
        r"tcgen05\.cp: .* swizzle is 128 bytes; .* none alone",
    ),
}


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    return Mutants(FUNCTIONS[1] + MXFP4.text("product"), {name: fault for name, (fault, _) in FAULTS.items()})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_is_an_error(mutants, fault):
    (x, scales_of_x), (w, scales_of_w) = MXFP4.numbers(128), MXFP4.numbers(columns_of(1))
    with pytest.raises(RuntimeError, match=FAULTS[fault][1]):
        run(mutants.kernel(fault, ("latest", 0, False)), MXFP4, 1, x, w, scales_of_x, scales_of_w)


def test_other_kinds_are_refused():
    source = FUNCTIONS[1] + KINDS["nvfp4"].text("nvfp4")
    for old, new in (("scale_vec::4X", "scale_vec::1X"), ("32x128b.warpx4", "64x128b.warpx2::02_13")):
        with pytest.raises(UnsupportedError, match=r"PTX instruction tcgen05.*no model"):
            load_one(source.replace(old, new), "nvfp4")


@pytest.mark.nightly
@pytest.mark.parametrize("group", [1, 2])
def test_nvcc_compiles_the_same_text(group):
    texts = [kind.text(name, group) for name, kind in KINDS.items()]
    compiled = nvcc.compile_source("#include <cstdint>\n" + FUNCTIONS[group] + "".join(texts), "sm_100a")
    if compiled is None:
        pytest.skip("nvcc is not installed")
    assert all("block_scale" in compiled.ptx[name] for name in KINDS)
