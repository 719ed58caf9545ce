#include "tensor_product.h"

namespace emulator {

constexpr int most_rows = 256;

// The 32-bit descriptor of a product without block scales (PTX ISA, "Instruction descriptor").
struct InstructionDescriptor {
  uint32_t bits;

  uint32_t field(int first, int count) const { return bits >> first & ((1u << count) - 1); }
  bool has_float_sums() const { return field(4, 2) == 1; }
  uint32_t a_format() const { return field(7, 3); }
  uint32_t b_format() const { return field(10, 3); }
  int columns() const { return int(field(17, 6) * 8); }
  int rows() const { return int(field(24, 5) * 16); }
  // Sparse, saturating, negated, with columns or rows that follow one another, shifted, or with bits that mean nothing.
  bool is_plain() const { return !(bits & ~(3u << 4 | 077u << 7 | 0x3fu << 17 | 0x1fu << 24)); }
};

[[noreturn]] static void refuse(const std::string& what) {
  fail("tcgen05.mma: the emulator has no model of " + what);
}

static void expect_shape(const InstructionDescriptor& descriptor, int group) {
  const int rows = descriptor.rows(), columns = descriptor.columns();
  const int fewest_rows = 64 * group, step = group == 2 ? 32 : rows == 64 ? 8 : 16;
  if ((rows != fewest_rows && rows != 2 * fewest_rows) || columns < step || columns > most_columns || columns % step)
    fail("tcgen05.mma.cta_group::" + std::to_string(group) + ": " + std::to_string(rows) + " x " +
         std::to_string(columns) + " sums; expected " +
         (group == 2 ? "128 or 256 rows and a multiple of 32 columns, up to 256"
                     : "64 rows and a multiple of 8 columns, or 128 and a multiple of 16, up to 256 columns"));
}

// Where an operand lies, as its 64-bit descriptor says (PTX ISA, "Shared memory descriptor").
static OperandLayout tensor_operand(uint64_t descriptor) {
  constexpr const char* swizzles[] = {"none", "128 bytes in chunks of 32", "128 bytes", "3, which means nothing",
                                      "64 bytes", "5, which means nothing", "32 bytes", "7, which means nothing"};
  constexpr uint64_t swizzle_128 = 2;
  if ((descriptor >> 46 & 3) != 1)
    fail("tcgen05.mma: a matrix descriptor of version " + std::to_string(descriptor >> 46 & 3) +
         "; expected 1, in bits 46 and 47");
  if (descriptor >> 61 != swizzle_128)
    fail(std::string("tcgen05.mma: a matrix descriptor whose swizzle is ") + swizzles[descriptor >> 61] +
         "; the emulator has a model of 128 bytes alone");
  constexpr uint64_t fields = 0xe000ffff3fff3fff;  // swizzle, version and stride, leading stride, start
  if (descriptor & ~fields)
    refuse("base offsets and other modes of a matrix descriptor: bits other than address, strides, version, swizzle");
  return {"tcgen05.mma", uint32_t(descriptor & 0x3fff) << 4, uint32_t(descriptor >> 16 & 0x3fff) << 4,
          uint32_t(descriptor >> 32 & 0x3fff) << 4, 3};
}

// The lane of a row's sums: 64 rows of a block alone take half of the lanes of each of four warps.
static int lane_of_row(const TensorProduct& product, int row) {
  return product.lane + (product.rows == 64 ? row / 16 * 32 + row % 16 : row);
}

// The sums of a row of this block. Of 64 rows that a block of a pair has, the second half of the columns lies in the
// lanes behind those of the first.
template <class Act>
EMULATOR_UNWATCHED static void for_each_part_of_row(const TensorProduct& product, int row, Act act) {
  const int count = product.region.columns;
  for (int part = 0; part < product.columns / count; ++part)
    act(&block->tensor_memory->word(lane_of_row(product, row) + part * 64, product.region.column), part * count, count);
}

template <class Format, int depth>
EMULATOR_UNWATCHED static void multiply(const TensorProduct& product) {
  static thread_local float a[most_rows][depth], b[depth][most_columns];
  const int rows = product.rows / product.group, columns = product.columns / product.group;
  for_each_of_group(product.group, [&](int i) {
    read_operand<Format, depth>(product.a, rows, &a[i * rows][0], depth, 1);
    read_operand<Format, depth>(product.b, columns, &b[0][i * columns], 1, most_columns);
  });
  for_each_of_group(product.group, [&](int i) {
    for (int row = 0; row < rows; ++row) {
      float sums[most_columns] = {};
      if (product.adds)
        for_each_part_of_row(product, row, [&](const uint32_t* words, int first, int count) {
          memcpy(&sums[first], words, size_t(count) * sizeof *words);
        });
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < product.columns; ++column) sums[column] += a[i * rows + row][k] * b[k][column];
      for_each_part_of_row(product, row, [&](uint32_t* words, int first, int count) {
        memcpy(words, &sums[first], size_t(count) * sizeof *words);
      });
    }
  });
}

using CarryOut = void (*)(const TensorProduct&);

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

// In one block.
template <class Act>
static void for_each_operand_chunk(const TensorProduct& product, Act act) {
  for_each_chunk(product.a, product.rows / product.group, product.row_bytes, act);
  for_each_chunk(product.b, product.columns / product.group, product.row_bytes, act);
}

static void complete_product(const TensorOperation& operation) {
  const TensorProduct& product = operation.product;
  if (!settings.products_complete_early) product.carry_out(product);
  TensorTouch touch = touch_by(*operation.owner);
  touch.is_product = true;
  touch.access = operation.issued;
  for_each_of_group(product.group, [&](int) {
    for_each_operand_chunk(product, [](size_t offset) { end_use_by_proxy(offset, 16); });
    end_tensor_write(product.region, touch);
  });
}

static void complete(const TensorOperation& operation) {
  if (operation.product.carry_out) return complete_product(operation);
  for (const uint32_t barrier : operation.barriers)
    in_block_of(barrier, "tcgen05.commit",
                [&](uint32_t local) { arrive_for(operation.before, local, "tcgen05.commit"); });
}

// The name of the sums to which products of one thread, kind and shape are added in order; never 0.
static uint64_t name_of_sums(uint32_t sums, uint32_t instruction) {
  return uint64_t(thread->number + 1) << 42 | uint64_t(instruction) << 10 | uint64_t(column_of(sums)) << 1 |
         (lane_of(sums) != 0);
}

static TensorOperation issued_now() {
  TensorOperation operation = {};
  operation.owner = thread;
  if (watched) operation.issued = {time_of(*thread), uint16_t(thread->number)};
  return operation;
}

static CarryOut expect_model(TensorKind kind, const InstructionDescriptor& descriptor) {
  const CarryOut carry_out = multiplication(kind, descriptor.a_format());
  const std::string of = " (instruction descriptor " + hexadecimal(descriptor.bits) + ")";
  if (!carry_out || descriptor.a_format() != descriptor.b_format())
    refuse("operands of these formats; expected both f16, bf16, tf32 or e4m3" + of);
  if (!descriptor.has_float_sums()) refuse("sums other than f32" + of);
  if (!descriptor.is_plain()) refuse("sparse, negated and transposed operands" + of);
  return carry_out;
}

static void begin_product(const TensorProduct& product, uint64_t sums) {
  for_each_of_group(product.group, [&](int) {
    begin_tensor_write(product.region, sums, "tcgen05.mma");
    for_each_operand_chunk(product, [](size_t offset) {
      expect_fenced(offset, 16, "tcgen05.mma");
      begin_use(offset, 16, "tcgen05.mma");
    });
  });
}

void issue_tensor_product(TensorKind kind, int group, uint32_t sums, uint64_t a, uint64_t b, uint32_t instruction,
                          uint32_t disabled, bool adds) {
  expect_tensor_group(group, "tcgen05.mma");
  if (block->rank % group) refuse("products that the odd block of a pair issues; expected the even one");
  const InstructionDescriptor descriptor{instruction};
  const CarryOut carry_out = expect_model(kind, descriptor);
  if (disabled) refuse("lanes whose sums stay as they are");
  expect_shape(descriptor, group);
  const int rows = descriptor.rows(), columns = descriptor.columns();
  constexpr int row_bytes = 32;
  TensorOperation operation = issued_now();
  operation.product = {carry_out, group,   tensor_operand(a), tensor_operand(b),
                       rows,      columns, row_bytes,         lane_of(sums),
                       region_of(group, rows, columns, sums), adds};
  begin_product(operation.product, name_of_sums(sums, instruction));
  if (settings.products_complete_early) carry_out(operation.product);
  block->tensor_memory->operations.push_back(operation);
}

static bool has_issued(const Thread* owner) {
  const auto& all = block->tensor_memory->operations;
  return std::any_of(all.begin(), all.end(), [=](const TensorOperation& o) { return o.owner == owner; });
}

// The first operation of a thread that is not complete.
static void complete_first_of(const Thread* owner) {
  auto& all = block->tensor_memory->operations;
  const auto first = std::find_if(all.begin(), all.end(), [=](const TensorOperation& o) { return o.owner == owner; });
  const TensorOperation operation = *first;
  all.erase(first);
  complete(operation);
}

static void commit(int group, const std::vector<uint32_t>& barriers) {
  expect_tensor_group(group, "tcgen05.commit");
  TensorOperation commit = issued_now();
  commit.barriers = barriers;
  for (const uint32_t barrier : barriers)
    in_block_of(barrier, "tcgen05.commit", [](uint32_t local) { expect_published(local, "tcgen05.commit"); });
  release(*thread, commit.before);
  if (settings.products_complete_early)
    while (has_issued(thread)) complete_first_of(thread);
  // What other threads have issued is not waited for.
  if (has_issued(thread)) block->tensor_memory->operations.push_back(commit);
  else complete(commit);
}

void commit_tensor_products(int group, uint32_t barrier) { commit(group, {in_cluster(barrier)}); }

void commit_tensor_products_to(int group, uint32_t barrier, uint32_t blocks) {
  if (!(blocks & 0xffff)) fail("a tcgen05.commit to no block");
  std::vector<uint32_t> barriers;
  for (uint32_t i = 0; i < 16; ++i)
    if (blocks >> i & 1) barriers.push_back(map_into(barrier, i));
  commit(group, barriers);
}

bool complete_tensor_operation() {
  const auto& all = block->tensor_memory->operations;
  if (all.empty()) return false;
  const size_t which = schedule.seed ? block->cluster->dice.below(uint32_t(all.size())) : 0;
  complete_first_of(all[which].owner);
  return true;
}

}  // namespace emulator
