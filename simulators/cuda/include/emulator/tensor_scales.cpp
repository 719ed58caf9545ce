#include "tensor_scales.h"

#include "block_scaled.h"

namespace emulator {

constexpr int scale_rows = 32, scale_row_bytes = 16;
constexpr uint32_t all_slices = (1u << slices) - 1;

static void carry_out_copy(const TensorWork& copy) {
  for_each_of_group(copy.group, [&](int) {
    const OperandLayout& source = copy.operands[0].layout;
    for (int lane = 0; lane < tensor_lanes; ++lane) {
      const uint32_t address = source.address(lane % scale_rows, 0);
      const unsigned char* row = from_window(address, scale_row_bytes, source.instruction);
      memcpy(&block->tensor_memory->word(lane, copy.results.column), row, scale_row_bytes);
    }
  });
}

void copy_scales(int group, uint32_t address, uint64_t source) {
  if (lane_of(address)) fail("tcgen05.cp: scales cannot begin at lane " + std::to_string(lane_of(address)));
  TensorWork copy = {};
  copy.carry_out = carry_out_copy;
  copy.group = group;
  copy.chain = chain_of_scales();
  copy.operands = {{tensor_operand(source, 0, "tcgen05.cp"), scale_rows, scale_row_bytes}};
  copy.results = {all_slices, column_of(address), scale_row_bytes / 4};
  issue_tensor_work(copy, "tcgen05.cp");
}

// The scales of chunk `chunk` of row `i` of an operand, where the lanes of a warp hold them.
template <class Scale>
static double scale_of(const TensorWork& product, int operand, int warp, int i, int chunk) {
  const int lane = warp * warp_size + i % warp_size, column = product.scales[size_t(operand)].column + i / warp_size;
  const uint32_t word = block->tensor_memory->word(lane, column);
  return double(Scale::value(uint8_t(word >> 8 * (product.scale_bytes[operand] + chunk))));
}

// As mma with block scales does (block_scaled.h).
template <class Format, class Scale, int depth, int chunks>
EMULATOR_UNWATCHED static void multiply(const TensorWork& product) {
  static thread_local float a[most_rows][depth], b[depth][most_columns];
  read_operands<Format, Format, depth>(product, a, b);
  for_each_of_group(product.group, [&](int i) {
    add_to_rows(product, [&](int row, float (&sums)[most_columns]) {
      const float* left = a[i * product.operands[0].rows + row];
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const double scale = scale_of<Scale>(product, 0, row / warp_size, row, chunk);
        for (int column = 0; column < product.columns; ++column) {
          double sum = 0;
          for (int k = chunk * depth / chunks; k < (chunk + 1) * depth / chunks; ++k)
            sum += double(left[k]) * double(b[k][column]);
          sums[column] += float(sum * scale * scale_of<Scale>(product, 1, row / warp_size, column, chunk));
        }
      }
    });
  });
}

// The 32-bit descriptor of a product with block scales (PTX ISA, "Instruction descriptor").
struct ScaledDescriptor {
  uint32_t bits;

  uint32_t field(int first, int count) const { return bits >> first & ((1u << count) - 1); }
  int columns() const { return int(field(17, 6) * 8); }
  int rows() const { return int(field(24, 5) * 16); }
  int byte_of_a() const { return int(field(29, 2)); }
  int byte_of_b() const { return int(field(4, 2)); }
  uint32_t without_bytes() const { return bits & ~(3u << 29 | 3u << 4); }
};

struct ScaledKind {
  void (*carry_out)(const TensorWork&);
  uint32_t formats;  // bits of the descriptor: those of the operands, and of the scales
};

static ScaledKind kind_with(int scales) {
  constexpr uint32_t e2m1 = 1 << 7 | 1 << 10, e8m0 = 1 << 23;
  if (scales == 1) return {multiply<Float8E4M3, ScaleUE8M0, 32, 1>, e8m0};
  if (scales == 2) return {multiply<Float4E2M1, ScaleUE8M0, 64, 2>, e2m1 | e8m0};
  return {multiply<Float4E2M1, ScaleUE4M3, 64, 4>, e2m1};
}

static void expect_scaled_shape(const ScaledDescriptor& descriptor, int group) {
  const int rows = descriptor.rows(), columns = descriptor.columns(), step = 8 * group;
  if (rows != 128 * group || columns < step || columns > most_columns || columns % step)
    refuse_product(std::to_string(rows) + " x " + std::to_string(columns) + " sums with block scales; expected " +
                   std::to_string(128 * group) + " rows and a multiple of " + std::to_string(step) +
                   " columns, up to 256");
}

static void expect_bytes(const ScaledDescriptor& descriptor, int scales) {
  for (const int byte : {descriptor.byte_of_a(), descriptor.byte_of_b()})
    if (byte % scales)
      fail("tcgen05.mma: scales from byte " + std::to_string(byte) + " on; expected a multiple of " +
           std::to_string(scales));
}

static TensorRegion region_of_scales(uint32_t address, int rows) {
  if (lane_of(address)) fail("tcgen05.mma: scales cannot begin at lane " + std::to_string(lane_of(address)));
  return {all_slices, column_of(address), (rows + warp_size - 1) / warp_size};
}

void multiply_with_scales(int scales, int group, uint32_t sums, uint64_t a, uint64_t b, uint32_t instruction,
                          uint32_t scales_of_a, uint32_t scales_of_b, bool adds) {
  const ScaledDescriptor descriptor{instruction};
  const ScaledKind kind = kind_with(scales);
  constexpr uint32_t shape = 0x3fu << 17 | 0x1fu << 24;
  if ((descriptor.without_bytes() & ~shape) != kind.formats)
    refuse_product("instruction descriptor " + hexadecimal(instruction) + " with " + std::to_string(scales) +
                   " scales; expected e4m3 with one of e8m0, or e2m1 with two of e8m0 or four of e4m3, depth-major");
  expect_scaled_shape(descriptor, group);
  expect_bytes(descriptor, scales);
  const int rows = descriptor.rows(), columns = descriptor.columns();
  TensorWork product = product_of(group, rows, columns, sums, a, b, descriptor.without_bytes(), adds);
  product.carry_out = kind.carry_out;
  product.scales = {region_of_scales(scales_of_a, rows / group), region_of_scales(scales_of_b, columns)};
  product.scale_bytes[0] = descriptor.byte_of_a();
  product.scale_bytes[1] = descriptor.byte_of_b();
  issue_tensor_work(product, "tcgen05.mma");
}

}  // namespace emulator
