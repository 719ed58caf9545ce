// wgmma: products of four warps whose operands lie in shared memory, carried out some time after they were issued.
//
// The threads of a warp wait for one another (.sync), the warps of a group do not: all have to issue the same products
// in the same order (.aligned), each when it comes there. A product begins when the last warp has issued it, and at the
// latest it reads its operands and writes its sums when the first warp waits for it.
#pragma once
#include <deque>

#include "bulk_copy.h"
#include "shared_operand.h"
#include "warp.h"

namespace emulator {

constexpr int group_threads = 128;
constexpr int group_warps = group_threads / warp_size;
constexpr uint32_t all_warps = (1u << group_warps) - 1;
constexpr int product_rows = 64;

// Where an operand lies, as the 64-bit descriptor says.
inline OperandLayout group_operand(uint64_t descriptor) {
  constexpr uint32_t modes[] = {0, 3, 2, 1};  // of bits 62 and 63
  return {"wgmma", uint32_t(descriptor & 0x3fff) << 4, uint32_t(descriptor >> 16 & 0x3fff) << 4,
          uint32_t(descriptor >> 32 & 0x3fff) << 4, modes[descriptor >> 62]};
}

struct Product {
  void (*carry_out)(const Product&);
  std::array<void*, group_threads> sums;  // of each thread, one behind the other
  std::array<std::array<uint32_t, 4>, group_threads> a_registers;
  uint64_t a, b;
  bool a_in_registers, adds, b_transposed;
  int columns, row_bytes, group;
  uint32_t issued_by;             // warps of the group, a bit each
  std::vector<uint32_t> issuing;  // clocks of those that issued it: see order.h
};

// How far a warp of a group has come.
struct WarpInGroup {
  size_t issued = 0;       // products
  int group = 0;           // of products, the one that is being filled
  bool fenced = false;
  uint32_t registers = 0;  // of a thread: see registers.h
};

struct WarpGroup {
  std::deque<Product> pending;
  size_t completed = 0;  // products before the pending ones
  WarpInGroup warps[group_warps];
  std::vector<uint32_t> completing;  // clocks of those that issued what is complete
};

inline WarpGroup& warp_group() { return block->warp_groups[size_t(thread->linear / group_threads)]; }

inline WarpInGroup& warp_in_group() { return warp_group().warps[thread->warp % group_warps]; }

void expect_group(const char* instruction);

// All 32 threads of a warp carry out together what only a group of four such warps may; `act` runs in the last one.
template <class Act>
void meet_warp_of_group(const char* instruction, Act act) {
  expect_group(instruction);
  meet(instruction, all_lanes, act, [](Meeting& meeting) {
    expect_whole_warp(meeting);
    argument_of<Act>(meeting, 0)();
  });
}

// Row and column of sum `i` of a thread.
inline int sum_row(int t, int i) { return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8; }
inline int sum_column(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

// The same of B, which may lie either way.
template <class Act>
void for_each_chunk_of_b(const Product& product, Act act) {
  const OperandLayout layout = group_operand(product.b);
  if (!product.b_transposed) return for_each_chunk(layout, product.columns, product.row_bytes, act);
  for (int k = 0; k < product.row_bytes / 2; ++k)
    for (int byte = 0; byte < product.columns * 2; byte += 16)
      act(offset_of(from_window(layout.transposed_address(k, byte), 16, "wgmma")));
}

template <class Format, int depth>
void read_a_registers(const Product& product, typename Format::Sum (&a)[product_rows][depth]) {
  constexpr int width = Format::per_register;
  for (int t = 0; t < group_threads; ++t)
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < width; ++i)
        a[t / 32 * 16 + t % 32 / 4 + r % 2 * 8][(r / 2 * 4 + t % 4) * width + i] =
            Format::element(product.a_registers[size_t(t)][size_t(r)], i);
}

template <class Format, int depth>
EMULATOR_UNWATCHED void multiply_group(const Product& product) {
  using Sum = typename Format::Sum;
  static thread_local Sum a[product_rows][depth], b[depth][most_columns], d[product_rows][most_columns];
  const int columns = product.columns;
  if (product.a_in_registers) read_a_registers<Format, depth>(product, a);
  else read_operand<Format, depth>(group_operand(product.a), product_rows, &a[0][0], depth, 1);
  const OperandLayout right = group_operand(product.b);
  if (product.b_transposed) read_transposed<Format, depth>(right, columns, &b[0][0], most_columns);
  else read_operand<Format, depth>(right, columns, &b[0][0], 1, most_columns);
  for (int t = 0; t < group_threads; ++t)
    for (int i = 0; i < columns / 2; ++i)
      d[sum_row(t, i)][sum_column(t, i)] = product.adds ? static_cast<Sum*>(product.sums[size_t(t)])[i] : Sum(0);
  for (int row = 0; row < product_rows; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < columns; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int t = 0; t < group_threads; ++t)
    for (int i = 0; i < columns / 2; ++i)
      static_cast<Sum*>(product.sums[size_t(t)])[i] = d[sum_row(t, i)][sum_column(t, i)];
}

// What a thread gives to a product, beside what is the same in all threads.
struct Issue {
  void* sums;
  std::array<uint32_t, 4> a_registers;
  uint64_t a, b;
  bool adds;
};

// A warp has come to a product: that of `fresh`, which has no operands of threads yet.
void issue_product(Meeting& meeting, const Product& fresh);

// Issues a product of 64 x depth by depth x columns. `a` is a descriptor, or four registers where it is an array.
// `b_transposed`: columns of B follow one another, not numbers of the depth.
template <class Format, int depth, int columns, bool b_transposed, class A>
void wgmma(std::array<typename Format::Sum*, columns / 2> sums, A a, uint64_t b, bool adds) {
  constexpr bool in_registers = !std::is_integral_v<A>;
  expect_group("wgmma.mma_async");
  Issue issue{first_of(sums, "wgmma"), {}, 0, b, adds};
  if constexpr (in_registers) issue.a_registers = a;
  else issue.a = a;
  meet("wgmma.mma_async", all_lanes, issue, [](Meeting& meeting) {
    const Issue& first = argument_of<Issue>(meeting, 0);
    Product fresh{};
    fresh.carry_out = multiply_group<Format, depth>;
    fresh.a = first.a;
    fresh.b = first.b;
    fresh.a_in_registers = in_registers;
    fresh.adds = first.adds;
    fresh.b_transposed = b_transposed;
    fresh.columns = columns;
    fresh.row_bytes = depth * 4 / Format::per_register;
    fresh.group = warp_in_group().group;
    issue_product(meeting, fresh);
  });
}

void fence_products();

void commit_products();

// All but the last `allowed` groups that this warp has committed are complete, which they cannot be before every warp
// has issued them.
void wait_for_products(int allowed);

}  // namespace emulator
