#include "tensor_product.h"

namespace emulator {

// The 32-bit descriptor of a product without block scales (PTX ISA, "Instruction descriptor").
struct InstructionDescriptor {
  uint32_t bits;

  uint32_t field(int first, int count) const { return bits >> first & ((1u << count) - 1); }
  bool has_float_sums() const { return field(4, 2) == 1; }
  uint32_t a_format() const { return field(7, 3); }
  uint32_t b_format() const { return field(10, 3); }
  int columns() const { return int(field(17, 6) * 8); }
  int rows() const { return int(field(24, 5) * 16); }
  // Not sparse, saturating, negated, with columns or rows that follow one another, or shifted; no bit means nothing.
  bool is_plain() const { return !(bits & ~(3u << 4 | 077u << 7 | 0x3fu << 17 | 0x1fu << 24)); }
};

void refuse_product(const std::string& what) { fail("tcgen05.mma: the emulator has no model of " + what); }

static void expect_shape(const InstructionDescriptor& descriptor, int group) {
  const int rows = descriptor.rows(), columns = descriptor.columns();
  const int fewest_rows = 64 * group, step = group == 2 ? 32 : rows == 64 ? 8 : 16;
  if ((rows != fewest_rows && rows != 2 * fewest_rows) || columns < step || columns > most_columns || columns % step)
    fail("tcgen05.mma.cta_group::" + std::to_string(group) + ": " + std::to_string(rows) + " x " +
         std::to_string(columns) + " sums; expected " +
         (group == 2 ? "128 or 256 rows and a multiple of 32 columns, up to 256"
                     : "64 rows and a multiple of 8 columns, or 128 and a multiple of 16, up to 256 columns"));
}

template <class Format, int depth>
EMULATOR_UNWATCHED static void multiply(const TensorWork& product) {
  static thread_local float a[most_rows][depth], b[depth][most_columns];
  read_operands<Format, Format, depth>(product, a, b);
  for_each_of_group(product.group, [&](int i) {
    add_to_rows(product, [&](int row, float (&sums)[most_columns]) {
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < product.columns; ++column)
          sums[column] += a[i * product.operands[0].rows + row][k] * b[k][column];
    });
  });
}

using CarryOut = void (*)(const TensorWork&);

// How numbers of a kind and format are multiplied; null where there is no model.
static CarryOut multiplication(TensorKind kind, uint32_t format) {
  if (kind == TensorKind::f16 && format == 0) return multiply<Float16, 16>;
  if (kind == TensorKind::f16 && format == 1) return multiply<BFloat16, 16>;
  if (kind == TensorKind::tf32 && format == 2) return multiply<TensorFloat32, 8>;
  if (kind == TensorKind::f8f6f4 && format == 0) return multiply<Float8E4M3, 32>;
  return nullptr;
}

// What the sums take in each block, from an address on.
static TensorRegion region_of(int group, int rows, int columns, uint32_t sums) {
  const int lane = lane_of(sums);
  if (lane != 0 && !(rows == 64 && lane == slice_lanes))
    fail("tcgen05.mma: " + std::to_string(rows) + " rows of sums cannot begin at lane " + std::to_string(lane));
  const uint32_t all = (1u << slices) - 1, half = lane ? 0b10101010 : 0b01010101;
  return {rows == 64 ? half : all, column_of(sums), rows / group == 64 ? columns / group : columns};
}

TensorWork product_of(int group, int rows, int columns, uint32_t sums, uint64_t a, uint64_t b, uint32_t kind,
                      bool adds) {
  constexpr uint32_t swizzle = 3;
  constexpr int row_bytes = 32;
  TensorWork product = {};
  product.group = group;
  // One thread's products of one kind and shape are added to the same sums in order.
  product.chain = uint64_t(thread->number + 1) << 42 | uint64_t(kind) << 10 | uint64_t(column_of(sums)) << 1 |
                  (lane_of(sums) != 0);
  product.operands = {{tensor_operand(a, swizzle, "tcgen05.mma"), rows / group, row_bytes},
                      {tensor_operand(b, swizzle, "tcgen05.mma"), columns / group, row_bytes}};
  product.results = region_of(group, rows, columns, sums);
  product.rows = rows;
  product.columns = columns;
  product.lane = lane_of(sums);
  product.adds = adds;
  return product;
}

static CarryOut expect_model(TensorKind kind, const InstructionDescriptor& descriptor) {
  const CarryOut carry_out = multiplication(kind, descriptor.a_format());
  const std::string of = " (instruction descriptor " + hexadecimal(descriptor.bits) + ")";
  if (!carry_out || descriptor.a_format() != descriptor.b_format())
    refuse_product("operands of these formats; expected both f16, bf16, tf32 or e4m3" + of);
  if (!descriptor.has_float_sums()) refuse_product("sums other than f32" + of);
  if (!descriptor.is_plain()) refuse_product("sparse, negated and transposed operands" + of);
  return carry_out;
}

void issue_tensor_product(TensorKind kind, int group, uint32_t sums, uint64_t a, uint64_t b, uint32_t instruction,
                          uint32_t disabled, bool adds) {
  const InstructionDescriptor descriptor{instruction};
  const CarryOut carry_out = expect_model(kind, descriptor);
  if (disabled) refuse_product("lanes whose sums stay as they are");
  expect_shape(descriptor, group);
  TensorWork product = product_of(group, descriptor.rows(), descriptor.columns(), sums, a, b, instruction, adds);
  product.carry_out = carry_out;
  issue_tensor_work(product, "tcgen05.mma");
}

}  // namespace emulator
