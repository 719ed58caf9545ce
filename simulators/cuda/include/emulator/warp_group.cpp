#include "warp_group.h"

namespace emulator {

void expect_group(const char* instruction) {
  if (size_t(thread->linear / group_threads + 1) * group_threads > block->threads.size())
    fail(std::string(instruction) + ": needs a warp group of 128 threads");
}

static void begin_product(Product& product) {
  const auto begin = [](size_t offset) {
    expect_fenced(offset, 16, "wgmma");
    begin_use(offset, 16, "wgmma");
  };
  if (!product.a_in_registers) for_each_chunk(group_operand(product.a), product_rows, product.row_bytes, begin);
  for_each_chunk_of_b(product, begin);
  release(*thread, product.issuing);
  if (settings.products_complete_early) product.carry_out(product);
}

static void complete_product(const Product& product) {
  const auto end = [](size_t offset) { end_use(offset, 16); };
  acquire(*thread, product.issuing);
  if (!settings.products_complete_early) product.carry_out(product);
  if (!product.a_in_registers) for_each_chunk(group_operand(product.a), product_rows, product.row_bytes, end);
  for_each_chunk_of_b(product, end);
  release(*thread, warp_group().completing);
}

// The product that a warp issues next; `fresh` where it is the first of its group to do so.
static Product& next_product(WarpGroup& group, WarpInGroup& warp, const Product& fresh) {
  const size_t place = warp.issued++ - group.completed;
  if (place == group.pending.size()) group.pending.push_back(fresh);
  Product& product = group.pending[place];
  if (product.group != warp.group || product.carry_out != fresh.carry_out || product.columns != fresh.columns)
    fail("wgmma: the warps of one warp group issue or commit different products");
  return product;
}

static void expect_same_operands(const Product& product, const Issue& issue) {
  if (product.a != issue.a || product.b != issue.b || product.adds != issue.adds)
    fail("wgmma: the threads of a warp group give different descriptors or scales");
}

void issue_product(Meeting& meeting, const Product& fresh) {
  expect_whole_warp(meeting);
  WarpInGroup& warp = warp_in_group();
  if (!warp.fenced) fail("wgmma.mma_async without a wgmma.fence before it");
  const int which = thread->warp % group_warps;
  Product& product = next_product(warp_group(), warp, fresh);
  for (int lane = 0; lane < warp_size; ++lane) {
    const Issue& issue = argument_of<Issue>(meeting, lane);
    expect_same_operands(product, issue);
    product.sums[size_t(which * warp_size + lane)] = issue.sums;
    product.a_registers[size_t(which * warp_size + lane)] = issue.a_registers;
    release(block->threads[size_t(thread->warp * warp_size + lane)], product.issuing);
  }
  product.issued_by |= 1u << which;
  if (product.issued_by != all_warps) return;
  begin_product(product);
  wake_waiting_on(&warp_group());
}

void fence_products() {
  meet_warp_of_group("wgmma.fence", [] { warp_in_group().fenced = true; });
}

void commit_products() {
  meet_warp_of_group("wgmma.commit_group", [] { ++warp_in_group().group; });
}

// Whether every warp has issued the products of groups before `end`.
static bool all_issued(const WarpGroup& group, int end) {
  for (const Product& product : group.pending)
    if (product.group < end && product.issued_by != all_warps) return false;
  return true;
}

void wait_for_products(int allowed) {
  meet_warp_of_group("wgmma.wait_group", [] {});
  WarpGroup& group = warp_group();
  const int end = warp_in_group().group - allowed;
  while (!all_issued(group, end))
    wait(State::waiting, "wgmma.wait_group, for products that not every warp of the group has issued", &group);
  while (!group.pending.empty() && group.pending.front().group < end) {
    complete_product(group.pending.front());
    group.pending.pop_front();
    ++group.completed;
  }
  acquire(*thread, group.completing);
}

}  // namespace emulator
