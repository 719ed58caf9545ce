// Products whose operands have a scale for every 16 or 32 elements (tcgen05.mma with .block_scale), and tcgen05.cp,
// which brings these scales to tensor memory.
//
// Row i of A, and column i of B, has the scales of a product in lane i % 32 of column i / 32 of tensor memory, one in
// each byte of the word from the one on that the instruction selects; the 32 lanes of each warp hold the same.
#pragma once
#include "tensor_product.h"

namespace emulator {

// Copies 32 rows of 16 bytes to four columns, for the lanes of each warp the same (.32x128b.warpx4).
void copy_scales(int group, uint32_t address, uint64_t source);

// `scales`: of each row, 1 of e8m0 for 32 numbers of e4m3; 2 of e8m0, or 4 of e4m3, for 64 of e2m1.
void multiply_with_scales(int scales, int group, uint32_t sums, uint64_t a, uint64_t b, uint32_t instruction,
                          uint32_t scales_of_a, uint32_t scales_of_b, bool adds);

}  // namespace emulator
