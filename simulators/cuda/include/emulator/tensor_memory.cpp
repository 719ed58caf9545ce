#include "tensor_memory.h"

#include "tensor_transfers.h"
#include "tensor_work.h"

namespace emulator {

TensorMemory::TensorMemory() = default;
TensorMemory::~TensorMemory() = default;

[[noreturn]] static void report_column(const char* instruction, int column, const std::string& what) {
  fail(std::string(instruction) + ": column " + std::to_string(column) + " of tensor memory " + what);
}

int warp_number(const Thread& t) { return t.home->rank * int(t.home->warps.size()) + t.warp; }

static Warp& warp_of_number(int number) {
  const auto& blocks = block->cluster->blocks;
  const size_t of_each = blocks[0]->warps.size();
  return blocks[size_t(number) / of_each]->warps[size_t(number) % of_each];
}

void expect_tensor_group(int group, const char* instruction) {
  int& known = block->tensor_memory->group;
  if (known && known != group)
    fail(std::string(instruction) + ".cta_group::" + std::to_string(group) + " in a kernel with others of cta_group::" +
         std::to_string(known));
  known = group;
  if (size_t(block->rank / group * group + group) > block->cluster->blocks.size())
    fail(std::string(instruction) + ".cta_group::2 in a block that no other makes a pair with");
}

static void expect_allocated(const TensorRegion& region, const char* instruction) {
  const auto& all = block->tensor_memory->allocations;
  for (int column = region.column; column < region.column + region.columns; ++column) {
    const auto has = [=](const TensorAllocation& a) { return a.column <= column && column < a.column + a.columns; };
    if (std::none_of(all.begin(), all.end(), has)) report_column(instruction, column, "is not allocated");
  }
}

// Calls `act` with the cells of a region and their columns.
template <class Act>
static void for_each_cell(const TensorRegion& region, Act act) {
  for (int slice = 0; slice < slices; ++slice)
    if (region.slices >> slice & 1)
      for (int column = region.column; column < region.column + region.columns; ++column)
        act(block->tensor_memory->cell(slice, column), column);
}

// That this warp may touch what another has touched.
static void expect_ordered(const TensorTouch& touch, int column, const char* instruction, const char* did) {
  if (!touch.time || touch.warp == warp_number(*thread)) return;
  const std::string what = std::string("was ") + did + " by warp " + std::to_string(touch.warp) + " of the cluster, ";
  if (!touch.is_committed && warp_of_number(touch.warp).tensor_fences.before_sync < touch.time)
    report_column(instruction, column, what + "without tcgen05.fence::before_thread_sync behind it");
  if (thread->home->warps[size_t(thread->warp)].tensor_fences.after_sync < touch.time)
    report_column(instruction, column, what + "and this warp has passed no tcgen05.fence::after_thread_sync since");
  if (watched && !happened_before(touch.access, *thread))
    report_column(instruction, column, what + "and no barrier lies between them");
}

// Whether work of a chain begins while work of others is under way.
static bool breaks_in(const TensorCell& cell, uint64_t chain) { return !chain || cell.chain != chain; }

void begin_tensor_read(const TensorRegion& region, const char* instruction, uint64_t chain) {
  expect_allocated(region, instruction);
  for_each_cell(region, [=](TensorCell& cell, int column) {
    if (cell.writing && breaks_in(cell, chain))
      report_column(instruction, column, "is still written by an operation under way, which nobody has waited for");
    if (!cell.writing) expect_ordered(cell.written, column, instruction, "written");
    ++cell.reading;
    cell.chain = chain;
  });
}

void end_tensor_read(const TensorRegion& region, const TensorTouch& touch) {
  for_each_cell(region, [&](TensorCell& cell, int) {
    --cell.reading;
    cell.read = touch;
  });
}

void begin_tensor_write(const TensorRegion& region, const char* instruction, uint64_t chain) {
  expect_allocated(region, instruction);
  for_each_cell(region, [=](TensorCell& cell, int column) {
    if (cell.reading && breaks_in(cell, chain))
      report_column(instruction, column, "is still read by an operation under way");
    if (cell.writing && breaks_in(cell, chain))
      report_column(instruction, column, "is still written by an operation of another thread, kind or shape");
    if (!cell.writing) expect_ordered(cell.written, column, instruction, "written");
    expect_ordered(cell.read, column, instruction, "read");
    ++cell.writing;
    cell.chain = chain;
  });
}

void end_tensor_write(const TensorRegion& region, const TensorTouch& touch) {
  for_each_cell(region, [&](TensorCell& cell, int) {
    --cell.writing;
    cell.written = touch;
  });
}

TensorTouch touch_by(const Thread& t) {
  TensorTouch touch;
  touch.time = ++t.home->cluster->tensor_accesses;
  touch.warp = warp_number(t);
  if (watched) touch.access = {time_of(t), uint16_t(t.number)};
  return touch;
}

struct AllocationArgument {
  int group;
  uint32_t address, columns;
};

// What the lanes of a warp agree on.
static const AllocationArgument& agreed(Meeting& meeting) {
  expect_whole_warp(meeting);
  const auto& first = argument_of<AllocationArgument>(meeting, 0);
  for (int lane = 1; lane < warp_size; ++lane) {
    const auto& other = argument_of<AllocationArgument>(meeting, lane);
    if (other.address != first.address || other.columns != first.columns)
      fail(std::string(meeting.instruction) + ": lanes of a warp give different addresses or columns");
  }
  if (first.group) expect_tensor_group(first.group, meeting.instruction);
  return first;
}

static void check_allocation(Meeting& meeting) {
  const auto& [group, address, columns] = agreed(meeting);
  if (columns < uint32_t(fewest_tensor_columns) || columns > uint32_t(tensor_columns) || columns & (columns - 1))
    fail("tcgen05.alloc: " + std::to_string(columns) + " columns are no power of two from 32 to 512");
  if (!block->tensor_memory->may_allocate) fail("tcgen05.alloc behind tcgen05.relinquish_alloc_permit");
  expect_aligned(address, 4, "tcgen05.alloc");
}

static bool is_free(int column, int columns) {
  const auto overlaps = [=](const TensorAllocation& a) {
    return a.column < column + columns && column < a.column + a.columns;
  };
  const auto& all = block->tensor_memory->allocations;
  return std::none_of(all.begin(), all.end(), overlaps);
}

// The last place with so many columns that nobody has in any block of the group; -1 where there is none.
static int free_place(int group, int columns) {
  for (int column = tensor_columns - columns; column >= 0; column -= fewest_tensor_columns) {
    bool is_free_in_all = true;
    for_each_of_group(group, [&](int) { is_free_in_all &= is_free(column, columns); });
    if (is_free_in_all) return column;
  }
  return -1;
}

// New columns hold NaN.
static void take_columns(int column, int columns) {
  TensorMemory& memory = *block->tensor_memory;
  memory.words.resize(size_t(tensor_lanes * tensor_columns));
  memory.cells.resize(size_t(slices * tensor_columns));
  memory.allocations.push_back({column, columns});
  for (int lane = 0; lane < tensor_lanes; ++lane)
    std::fill_n(&memory.word(lane, column), columns, ~0u);
  for (int slice = 0; slice < slices; ++slice) std::fill_n(&memory.cell(slice, column), columns, TensorCell{});
}

// Whether a warp of each block of the group has asked for so many columns.
static bool have_all_asked(int group, int columns) {
  bool have_all = true;
  for_each_of_group(group, [&](int) {
    const TensorMemory& memory = *block->tensor_memory;
    const bool asks = memory.wanted && memory.granted < 0;
    if (asks && memory.wanted != columns)
      fail("tcgen05.alloc: the blocks of a pair ask for different numbers of columns");
    have_all &= asks;
  });
  return have_all;
}

// Columns for each block of the group, where all have asked and there are enough.
static void grant(int group, int columns) {
  const int place = have_all_asked(group, columns) ? free_place(group, columns) : -1;
  if (place < 0) return;
  for_each_of_group(group, [&](int) {
    take_columns(place, columns);
    block->tensor_memory->granted = place;
    wake_waiting_on(block->tensor_memory.get());
  });
}

// The columns that the calling thread has asked for.
static int wait_for_columns(int group, int columns) {
  TensorMemory& memory = *block->tensor_memory;
  const auto wait_here = [&] {
    wait(State::waiting, "tcgen05.alloc, for columns that nobody gives back, or for the other block", &memory);
  };
  while (memory.wanted) wait_here();  // another warp asks
  memory.wanted = columns;
  for (grant(group, columns); memory.granted < 0; grant(group, columns)) wait_here();
  const int column = memory.granted;
  memory.wanted = 0;
  memory.granted = -1;
  wake_waiting_on(&memory);
  return column;
}

static void write_address(uint32_t shared, uint32_t address) {
  unsigned char* target = from_window(shared, sizeof address, "tcgen05.alloc");
  expect_overwritable(offset_of(target), sizeof address, "tcgen05.alloc");
  note_write(*thread, offset_of(target), sizeof address);
  memcpy(target, &address, sizeof address);
}

void allocate_tensor_memory(int group, uint32_t shared, uint32_t columns) {
  AllocationArgument argument{group, shared, columns};
  meet("tcgen05.alloc", all_lanes, argument, check_allocation);
  if (thread->lane == 0) write_address(shared, uint32_t(wait_for_columns(group, int(columns))));
  meet("tcgen05.alloc", all_lanes, argument, [](Meeting&) {});
}

static void give_back(Meeting& meeting) {
  const auto& [group, address, columns] = agreed(meeting);
  TensorMemory& memory = *block->tensor_memory;
  const int count = int(columns), column = column_of(address);
  const auto is_it = [=](const TensorAllocation& a) { return a.column == column && a.columns == count; };
  const auto found = std::find_if(memory.allocations.begin(), memory.allocations.end(), is_it);
  if (lane_of(address) || found == memory.allocations.end())
    fail("tcgen05.dealloc: " + std::to_string(count) + " columns at address " + hexadecimal(address) +
         " were not allocated so");
  for_each_cell({(1u << slices) - 1, column, count}, [](const TensorCell& cell, int at) {
    if (cell.writing || cell.reading) report_column("tcgen05.dealloc", at, "is still used by an operation under way");
  });
  memory.allocations.erase(found);
  for_each_of_group(group, [](int) { wake_waiting_on(block->tensor_memory.get()); });
}

void free_tensor_memory(int group, uint32_t address, uint32_t columns) {
  AllocationArgument argument{group, address, columns};
  meet("tcgen05.dealloc", all_lanes, argument, give_back);
}

void give_up_allocating(int group) {
  AllocationArgument argument{group, 0, 0};
  meet("tcgen05.relinquish_alloc_permit", all_lanes, argument, [](Meeting& meeting) {
    agreed(meeting);
    block->tensor_memory->may_allocate = false;
  });
}

static TensorFences& own_fences() { return thread->home->warps[size_t(thread->warp)].tensor_fences; }

void fence_tensor_memory_before_sync() { own_fences().before_sync = ++block->cluster->tensor_accesses; }

void fence_tensor_memory_after_sync() { own_fences().after_sync = ++block->cluster->tensor_accesses; }

}  // namespace emulator
