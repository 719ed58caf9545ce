#include "tensor_work.h"

namespace emulator {

OperandLayout tensor_operand(uint64_t descriptor, uint32_t swizzle, const char* instruction) {
  constexpr const char* names[] = {"none", "128 bytes in chunks of 32", "128 bytes", "3, which means nothing",
                                   "64 bytes", "5, which means nothing", "32 bytes", "7, which means nothing"};
  constexpr uint64_t modes[] = {0, 6, 4, 2};  // of bits 61 to 63
  const std::string which = std::string(instruction) + ": a matrix descriptor ";
  const uint64_t expected = modes[swizzle];
  if ((descriptor >> 46 & 3) != 1)
    fail(which + "of version " + std::to_string(descriptor >> 46 & 3) + "; expected 1, in bits 46 and 47");
  if (descriptor >> 61 != expected)
    fail(which + "whose swizzle is " + names[descriptor >> 61] + "; the emulator has a model of " + names[expected] +
         " alone");
  constexpr uint64_t fields = 0xe000ffff3fff3fff;  // swizzle, version and stride, leading stride, start
  if (descriptor & ~fields)
    fail(which + "with bits other than address, strides, version and swizzle; the emulator has no model of base "
                 "offsets and other modes");
  return {instruction, uint32_t(descriptor & 0x3fff) << 4, uint32_t(descriptor >> 16 & 0x3fff) << 4,
          uint32_t(descriptor >> 32 & 0x3fff) << 4, swizzle};
}

uint64_t chain_of_scales() { return uint64_t(1) << 63 | uint64_t(thread->number); }

template <class Act>
static void for_each_operand_chunk(const TensorWork& work, Act act) {
  for (const SharedRows& operand : work.operands) for_each_chunk(operand.layout, operand.rows, operand.row_bytes, act);
}

static void begin(const TensorWork& work, const char* instruction) {
  for_each_of_group(work.group, [&](int) {
    for (const TensorRegion& scales : work.scales) begin_tensor_read(scales, instruction, chain_of_scales());
    begin_tensor_write(work.results, instruction, work.chain);
    for_each_operand_chunk(work, [=](size_t offset) {
      expect_fenced(offset, 16, instruction);
      begin_use(offset, 16, instruction);
    });
  });
}

static void complete(const TensorWork& work, const TensorTouch& touch) {
  if (!settings.products_complete_early) work.carry_out(work);
  for_each_of_group(work.group, [&](int) {
    for_each_operand_chunk(work, [](size_t offset) { end_use_by_proxy(offset, 16); });
    for (const TensorRegion& scales : work.scales) end_tensor_read(scales, touch);
    end_tensor_write(work.results, touch);
  });
}

static void complete(const TensorOperation& operation) {
  if (operation.work.carry_out) {
    TensorTouch touch = touch_by(*operation.owner);
    touch.is_committed = true;
    touch.access = operation.issued;
    complete(operation.work, touch);
  }
  for (const uint32_t barrier : operation.barriers)
    in_block_of(barrier, "tcgen05.commit",
                [&](uint32_t local) { arrive_for(operation.before, local, "tcgen05.commit"); });
}

static TensorOperation issued_now() {
  TensorOperation operation = {};
  operation.owner = thread;
  if (watched) operation.issued = {time_of(*thread), uint16_t(thread->number)};
  return operation;
}

void issue_tensor_work(const TensorWork& work, const char* instruction) {
  expect_tensor_group(work.group, instruction);
  if (block->rank % work.group)
    fail(std::string(instruction) + ": the emulator has no model of work that the odd block of a pair issues; "
                                    "expected the even one");
  begin(work, instruction);
  if (settings.products_complete_early) work.carry_out(work);
  TensorOperation operation = issued_now();
  operation.work = work;
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

void commit_tensor_work(int group, uint32_t barrier) { commit(group, {in_cluster(barrier)}); }

void commit_tensor_work_to(int group, uint32_t barrier, uint32_t blocks) {
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
