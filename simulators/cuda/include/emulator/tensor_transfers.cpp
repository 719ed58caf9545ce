#include "tensor_transfers.h"

namespace emulator {

struct TransferArgument {
  bool loads;
  uint32_t address;
  int columns;
  uint32_t* loaded;
  const uint32_t* stored;
};

// The lanes that a warp reaches.
static TensorRegion own_region(const TransferArgument& argument, const char* instruction) {
  const int quarter = thread->warp % 4, lane = lane_of(argument.address);
  if (lane != quarter * warp_size)
    fail(std::string(instruction) + ": warp " + std::to_string(thread->warp) + " reaches lanes of tensor memory from " +
         std::to_string(quarter * warp_size) + " on, not from lane " + std::to_string(lane));
  return {3u << (2 * quarter), column_of(argument.address), argument.columns};
}

static void carry_out(const TensorTransfer& transfer) {
  const int first_lane = transfer.warp % 4 * warp_size;
  for (int lane = 0; lane < warp_size; ++lane)
    for (int i = 0; i < transfer.region.columns; ++i) {
      uint32_t& word = block->tensor_memory->word(first_lane + lane, transfer.region.column + i);
      if (transfer.loads) transfer.loaded[size_t(lane)][i] = word;
      else word = transfer.stored[size_t(lane)][size_t(i)];
    }
}

// Registers that are still to be loaded hold NaN.
static void issue_transfer(Meeting& meeting) {
  expect_whole_warp(meeting);
  const auto& first = argument_of<TransferArgument>(meeting, 0);
  TensorTransfer transfer{first.loads, thread->warp, own_region(first, meeting.instruction), {}, {}};
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto& mine = argument_of<TransferArgument>(meeting, lane);
    if (mine.address != first.address || mine.columns != first.columns)
      fail(std::string(meeting.instruction) + ": lanes of a warp give different addresses or shapes");
    transfer.loaded[size_t(lane)] = mine.loaded;
    if (mine.loads) std::fill_n(mine.loaded, mine.columns, ~0u);
    else transfer.stored[size_t(lane)].assign(mine.stored, mine.stored + mine.columns);
  }
  if (first.loads) begin_tensor_read(transfer.region, meeting.instruction);
  else begin_tensor_write(transfer.region, 0, meeting.instruction);
  if (settings.products_complete_early) carry_out(transfer);
  block->tensor_memory->transfers.push_back(transfer);
}

void transfer_tensor_memory(bool loads, uint32_t address, int columns, uint32_t* loaded, const uint32_t* stored) {
  TransferArgument argument{loads, address, columns, loaded, stored};
  meet(loads ? "tcgen05.ld" : "tcgen05.st", all_lanes, argument, issue_transfer);
}

static void complete_transfers(bool loads) {
  auto& all = block->tensor_memory->transfers;
  const auto due = [=](const TensorTransfer& t) { return t.loads == loads && t.warp == thread->warp; };
  for (const TensorTransfer& transfer : all) {
    if (!due(transfer)) continue;
    if (!settings.products_complete_early) carry_out(transfer);
    const TensorTouch touch = touch_by(thread_of(0));
    if (loads) end_tensor_read(transfer.region, touch);
    else end_tensor_write(transfer.region, touch);
  }
  all.erase(std::remove_if(all.begin(), all.end(), due), all.end());
}

void wait_for_tensor_loads() {
  int nothing = 0;
  meet("tcgen05.wait::ld", all_lanes, nothing, [](Meeting& meeting) {
    expect_whole_warp(meeting);
    complete_transfers(true);
  });
}

void wait_for_tensor_stores() {
  int nothing = 0;
  meet("tcgen05.wait::st", all_lanes, nothing, [](Meeting& meeting) {
    expect_whole_warp(meeting);
    complete_transfers(false);
  });
}

}  // namespace emulator
