"""Functions of CUDA C for tensor memory in the style of TVM, one for each instruction, and their descriptors."""

from __future__ import annotations

_FUNCTIONS = """
__forceinline__ __device__ void allocate(void* place, unsigned columns) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;"
               : : "r"(shared_address(place)), "r"(columns) : "memory");
}
__forceinline__ __device__ void relinquish() {
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" : : : "memory");
}
__forceinline__ __device__ void deallocate(unsigned address, unsigned columns) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" : : "r"(address), "r"(columns) : "memory");
}
__forceinline__ __device__ void load_columns(unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, unsigned& r4,
                                             unsigned& r5, unsigned& r6, unsigned& r7, unsigned address) {
  asm volatile("tcgen05.ld.sync.aligned.32x32b.x8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3), "=r"(r4), "=r"(r5), "=r"(r6), "=r"(r7) : "r"(address));
}
__forceinline__ __device__ void load_matrices(unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, unsigned& r4,
                                              unsigned& r5, unsigned& r6, unsigned& r7, unsigned address) {
  asm volatile("tcgen05.ld.sync.aligned.16x256b.x2.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3), "=r"(r4), "=r"(r5), "=r"(r6), "=r"(r7) : "r"(address));
}
__forceinline__ __device__ void store_columns(unsigned address, unsigned r0, unsigned r1) {
  asm volatile("tcgen05.st.sync.aligned.32x32b.x2.b32 [%0], {%1, %2};" : : "r"(address), "r"(r0), "r"(r1));
}
__forceinline__ __device__ void wait_for_loads() { asm volatile("tcgen05.wait::ld.sync.aligned;" : : : "memory"); }
__forceinline__ __device__ void wait_for_stores() { asm volatile("tcgen05.wait::st.sync.aligned;" : : : "memory"); }
__forceinline__ __device__ void fence_before() { asm volatile("tcgen05.fence::before_thread_sync;" : : : "memory"); }
__forceinline__ __device__ void fence_after() { asm volatile("tcgen05.fence::after_thread_sync;" : : : "memory"); }
__forceinline__ __device__ void publish() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }
__forceinline__ __device__ uint64_t operand(const void* start) {
  return (shared_address(start) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 46 | (uint64_t)2 << 61;
}
"""

_MULTIPLY = """
__forceinline__ __device__ void multiply_{kind}(unsigned sums, uint64_t a, uint64_t b, unsigned instruction,
                                              unsigned lanes, unsigned adds) {{
  asm volatile("{{ .reg .pred ps0; setp.ne.b32 ps0, %5, 0; "
               "tcgen05.mma.cta_group::1.kind::{kind} [%0], %1, %2, %3, {{%4, %4, %4, %4}}, ps0; }}"
               : : "r"(sums), "l"(a), "l"(b), "r"(instruction), "r"(lanes), "r"(adds));
}}
"""

_SCALED_KINDS = {
    "mxf8f6f4": "mxf8f6f4.block_scale.scale_vec::1X",
    "mxf4": "mxf4.block_scale.scale_vec::2X",
    "mxfp4": "mxf4nvf4.block_scale.scale_vec::2X",
    "nvfp4": "mxf4nvf4.block_scale.scale_vec::4X",
}
_MULTIPLY_SCALED = """
__forceinline__ __device__ void multiply_{name}(unsigned sums, uint64_t a, uint64_t b, unsigned instruction,
                                              unsigned scales_of_a, unsigned scales_of_b, unsigned adds) {{
  asm volatile("{{ .reg .pred ps0; setp.ne.b32 ps0, %6, 0; "
               "tcgen05.mma.cta_group::1.kind::{kind} [%0], %1, %2, %3, [%4], [%5], ps0; }}"
               : : "r"(sums), "l"(a), "l"(b), "r"(instruction), "r"(scales_of_a), "r"(scales_of_b), "r"(adds));
}}
"""
_COPY_SCALES = """
__forceinline__ __device__ void copy_scales(unsigned address, const void* source) {
  uint64_t rows = (shared_address(source) >> 4) | (uint64_t)8 << 32 | (uint64_t)1 << 46;
  asm volatile("tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;" : : "r"(address), "l"(rows));
}
"""

_ALONE = """
__forceinline__ __device__ unsigned rank_of_block() { return 0; }
__forceinline__ __device__ void meet() { __syncthreads(); }
__forceinline__ __device__ void arrive_at_issuer(void* barrier) { arrive(barrier, 1); }
__forceinline__ __device__ void commit(void* barrier) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];"
               : : "r"(shared_address(barrier)) : "memory");
}
"""

_IN_PAIRS = """
__forceinline__ __device__ unsigned rank_of_block() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__forceinline__ __device__ void meet() {
  asm volatile("barrier.cluster.arrive.release;" : : : "memory");
  asm volatile("barrier.cluster.wait.acquire;" : : : "memory");
}
__forceinline__ __device__ void arrive_at_issuer(void* barrier) {
  unsigned mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared_address(barrier)), "r"(0));
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" : : "r"(mapped) : "memory");
}
__forceinline__ __device__ void commit(void* barrier) {
  asm volatile("tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;"
               : : "r"(shared_address(barrier)), "h"((unsigned short)3) : "memory");
}
"""


def _in_pairs(functions: str) -> str:
    return functions.replace("::1.", "::2.").replace("{%4, %4, %4, %4}", "{%4, %4, %4, %4, %4, %4, %4, %4}")


_PLAIN = _FUNCTIONS + "".join(_MULTIPLY.format(kind=kind) for kind in ("f16", "tf32", "f8f6f4"))
TENSOR_FUNCTIONS = _PLAIN + _ALONE
PAIR_FUNCTIONS = _in_pairs(_PLAIN) + _IN_PAIRS
"""The same for pairs of blocks (``cta_group::2``), whose block of rank 0 issues products and commits to both."""
_OF_SCALES = _COPY_SCALES + "".join(_MULTIPLY_SCALED.format(name=n, kind=kind) for n, kind in _SCALED_KINDS.items())
SCALE_FUNCTIONS = {1: _OF_SCALES, 2: _in_pairs(_OF_SCALES)}
"""More functions, by blocks of a group: for block scales."""


def instruction_descriptor(rows: int, columns: int, number: int) -> int:
    """The 32-bit descriptor of a product with sums of f32. ``number``: the format of both operands."""
    return 1 << 4 | number << 7 | number << 10 | columns // 8 << 17 | rows // 16 << 24
