#include "asynchronous.h"

#include "tensor_transfers.h"
#include "tensor_work.h"

namespace emulator {

Block::Block() = default;
Block::~Block() = default;

// The oldest, or any where the order is drawn: they pass one another.
static bool complete_bulk_load() {
  auto& copies = block->bulk_copies;
  const auto loads = [](const BulkCopy& copy) { return copy.loads; };
  auto load = std::find_if(copies.begin(), copies.end(), loads);
  if (load == copies.end()) return false;
  for (auto other = load + 1; schedule.seed && other != copies.end(); ++other)
    if (loads(*other) && block->cluster->dice.below(2)) load = other;
  const BulkCopy copy = *load;
  copies.erase(load);
  complete_load(copy);
  return true;
}

static bool complete_late_arrival() {
  auto& arrivals = block->late_arrivals;
  if (arrivals.empty()) return false;
  const LateArrival arrival = arrivals.front();
  arrivals.erase(arrivals.begin());
  complete_copies_before(arrival.owner->copies.group + 1, *arrival.owner);
  arrive_at_memory_barrier(*arrival.owner, arrival.barrier, 1);
  return true;
}

bool complete_something() {
  bool completed = false;
  for (const auto& b : thread->home->cluster->blocks)
    if (!completed)
      in_block(*b, [&] { completed = complete_bulk_load() || complete_late_arrival() || complete_tensor_operation(); });
  return completed;
}

void reset_asynchronous_state(Block& b) {
  b.memory_barriers.clear();
  b.bulk_copies.clear();
  b.late_arrivals.clear();
  WarpGroup fresh;
  for (WarpInGroup& warp : fresh.warps) warp.registers = b.launch_registers;
  b.warp_groups.assign(volume(b.shape) / group_threads + 1, fresh);
  b.spare_registers = 0;
  b.tensor_memory = std::make_unique<TensorMemory>();
}

void check_left_behind(const Thread& t) {
  for (const BulkCopy& copy : block->bulk_copies)
    if (!copy.loads && copy.owner == &t) fail("a thread ends whose bulk stores still read shared memory");
  for (const TensorTransfer& transfer : block->tensor_memory->transfers)
    if (transfer.warp == t.warp)
      fail(std::string("a warp ends without ") + (transfer.loads ? "tcgen05.wait::ld behind its tcgen05.ld" :
                                                                   "tcgen05.wait::st behind its tcgen05.st"));
}

static void check_tensor_memory_left_behind() {
  const TensorMemory& memory = *block->tensor_memory;
  if (!memory.allocations.empty())
    fail("a block ends without tcgen05.dealloc of the " + std::to_string(memory.allocations[0].columns) +
         " columns of tensor memory from column " + std::to_string(memory.allocations[0].column) + " on");
  if (!memory.operations.empty()) fail("a block ends while a tcgen05.commit has still to arrive at its mbarrier");
}

void check_left_behind() {
  for (const BulkCopy& copy : block->bulk_copies)
    if (copy.loads) fail("a block ends whose shared memory a bulk copy has still to be written to");
  for (const WarpGroup& group : block->warp_groups)
    for (const Product& product : group.pending)
      if (product.issued_by != all_warps) fail("wgmma: not every warp of a warp group has issued the same products");
  check_tensor_memory_left_behind();
}

}  // namespace emulator
