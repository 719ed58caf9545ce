// tcgen05.mma: products of operands in shared memory, whose sums lie in tensor memory.
#pragma once
#include "tensor_work.h"

namespace emulator {

constexpr int most_rows = 256;  // of a product

enum class TensorKind { f16, tf32, f8f6f4 };

[[noreturn]] void refuse_product(const std::string& what);

// A product that is not yet carried out. `kind`: what distinguishes its kind and shape from others, in 32 bits.
TensorWork product_of(int group, int rows, int columns, uint32_t sums, uint64_t a, uint64_t b, uint32_t kind,
                      bool adds);

// Calls `act` with the words that hold sums of a row of this block, their first column and count. Of 64 rows that a
// block of a pair has, the second half of the columns lies in the lanes behind those of the first.
template <class Act>
EMULATOR_UNWATCHED void for_each_part_of_row(const TensorWork& product, int row, Act act) {
  const int count = product.results.columns;
  // 64 rows of a block alone take half of the lanes of each of four warps.
  const int lane = product.lane + (product.rows == 64 ? row / 16 * 32 + row % 16 : row);
  for (int part = 0; part < product.columns / count; ++part)
    act(&block->tensor_memory->word(lane + part * 64, product.results.column), part * count, count);
}

// A and B of all blocks of a group.
template <class FormatOfA, class FormatOfB, int depth>
void read_operands(const TensorWork& product, float (&a)[most_rows][depth], float (&b)[depth][most_columns]) {
  for_each_of_group(product.group, [&](int i) {
    const SharedRows &left = product.operands[0], &right = product.operands[1];
    read_operand<FormatOfA, depth>(left.layout, left.rows, &a[i * left.rows][0], depth, 1);
    read_operand<FormatOfB, depth>(right.layout, right.rows, &b[0][i * right.rows], 1, most_columns);
  });
}

// Calls `add` with the sums of each row of this block, and writes what it makes of them.
template <class Add>
EMULATOR_UNWATCHED void add_to_rows(const TensorWork& product, Add add) {
  for (int row = 0; row < product.operands[0].rows; ++row) {
    float sums[most_columns] = {};
    if (product.adds)
      for_each_part_of_row(product, row, [&](const uint32_t* words, int first, int count) {
        memcpy(&sums[first], words, size_t(count) * sizeof *words);
      });
    add(row, sums);
    for_each_part_of_row(product, row, [&](uint32_t* words, int first, int count) {
      memcpy(words, &sums[first], size_t(count) * sizeof *words);
    });
  }
}

// `disabled`: lanes whose sums are to stay as they are.
void issue_tensor_product(TensorKind kind, int group, uint32_t sums, uint64_t a, uint64_t b, uint32_t instruction,
                          uint32_t disabled, bool adds);

// `a`: a descriptor; the address of an A in tensor memory is shorter.
template <class A>
void multiply_in_tensor_memory(TensorKind kind, int group, uint32_t sums, A a, uint64_t b, uint32_t instruction,
                               uint32_t disabled, bool adds) {
  static_assert(sizeof(A) == 8, "tcgen05.mma: the emulator has no model of an A that lies in tensor memory");
  issue_tensor_product(kind, group, sums, a, b, instruction, disabled, adds);
}

}  // namespace emulator
