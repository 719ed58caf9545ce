#include "tensor_transfers.h"

namespace emulator {

struct TransferArgument {
  bool loads;
  TransferShape shape;
  uint32_t address;
  int registers;
  uint32_t* loaded;
  const uint32_t* stored;
};

// The lanes that a warp reaches.
static TensorRegion own_region(const TransferArgument& argument, const char* instruction) {
  const int own = thread->warp % 4 * warp_size, lane = lane_of(argument.address), lanes = argument.shape.lanes;
  if (lane != own && lane != own + warp_size - lanes)
    fail(std::string(instruction) + ": warp " + std::to_string(thread->warp) + " reaches lanes of tensor memory from " +
         std::to_string(own) + " on, not from lane " + std::to_string(lane));
  const uint32_t slices_reached = (1u << lanes / slice_lanes) - 1;
  return {slices_reached << lane / slice_lanes, column_of(argument.address), argument.shape.columns(argument.registers)};
}

static void carry_out(const TensorTransfer& transfer) {
  const TransferShape& shape = transfer.shape;
  for (int own = 0; own < warp_size; ++own)
    for (int i = 0; i < transfer.registers; ++i) {
      const int lane = transfer.first_lane + shape.lane(own, i), column = transfer.region.column + shape.column(own, i);
      uint32_t& word = block->tensor_memory->word(lane, column);
      if (transfer.loads) transfer.loaded[size_t(own)][i] = word;
      else word = transfer.stored[size_t(own)][size_t(i)];
    }
}

// Registers that are still to be loaded hold NaN.
static void issue_transfer(Meeting& meeting) {
  expect_whole_warp(meeting);
  const auto& first = argument_of<TransferArgument>(meeting, 0);
  const TensorRegion region = own_region(first, meeting.instruction);
  TensorTransfer transfer{first.loads, first.shape, lane_of(first.address), first.registers, thread->warp, region, {}, {}};
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto& mine = argument_of<TransferArgument>(meeting, lane);
    if (mine.address != first.address || mine.registers != first.registers || mine.shape.lanes != first.shape.lanes)
      fail(std::string(meeting.instruction) + ": lanes of a warp give different addresses or shapes");
    transfer.loaded[size_t(lane)] = mine.loaded;
    if (mine.loads) std::fill_n(mine.loaded, mine.registers, ~0u);
    else transfer.stored[size_t(lane)].assign(mine.stored, mine.stored + mine.registers);
  }
  if (first.loads) begin_tensor_read(transfer.region, meeting.instruction);
  else begin_tensor_write(transfer.region, meeting.instruction);
  if (settings.products_complete_early) carry_out(transfer);
  block->tensor_memory->transfers.push_back(transfer);
}

void transfer_tensor_memory(bool loads, int lanes, uint32_t address, int registers, uint32_t* loaded,
                            const uint32_t* stored) {
  TransferArgument argument{loads, {lanes}, address, registers, loaded, stored};
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
