#include "mbarrier.h"

namespace emulator {

static MemoryBarrierClocks& clocks_of_barrier(uint32_t address, const char* instruction) {
  for (MemoryBarrierClocks& known : block->memory_barriers)
    if (known.address == address) return known;
  fail(std::string(instruction) + ": byte " + std::to_string(address - block->shared.window) +
       " of shared memory holds no mbarrier that was initialised");
}

MemoryBarrier& memory_barrier(uint32_t address, const char* instruction) {
  expect_aligned(address, 8, instruction);
  clocks_of_barrier(address, instruction);
  return *reinterpret_cast<MemoryBarrier*>(from_window(address, 8, instruction));
}

void initialise_barrier(uint32_t address, uint32_t arrivals) {
  expect_aligned(address, 8, "mbarrier.init");
  if (!arrivals || arrivals > most_arrivals) fail("mbarrier.init: a count of " + std::to_string(arrivals));
  auto barrier = reinterpret_cast<MemoryBarrier*>(from_window(address, 8, "mbarrier.init"));
  *barrier = {0, arrivals, arrivals, 0};
  block->memory_barriers.push_back({address, {}, {}, thread->number, watched ? time_of(*thread) : 0});
}

// The barrier as a thread uses it that need not have initialised it.
static MemoryBarrierClocks& initialised_barrier(const Thread& t, uint32_t address, const char* instruction) {
  MemoryBarrierClocks& clocks = clocks_of_barrier(address, instruction);
  const Access initialised{clocks.initialised_at, uint16_t(clocks.initialised_by)};
  if (watched && !happened_before(initialised, t))
    report_race(t, "uses", address - block->shared.window, initialised, "initialised as an mbarrier");
  return clocks;
}

void publish_barriers() {
  for (MemoryBarrierClocks& known : block->memory_barriers)
    if (known.initialised_by == thread->number) known.published = true;
}

void expect_published(uint32_t address, const char* instruction) {
  if (!clocks_of_barrier(address, instruction).published)
    fail(std::string(instruction) + ": its mbarrier was initialised without fence.mbarrier_init behind it, or " +
         "fence.proxy.async, by the same thread");
}

void fence_for_asynchronous_proxy() {
  publish_writes();
  publish_barriers();
}

void invalidate_barrier(uint32_t address) {
  memory_barrier(address, "mbarrier.inval");
  auto& known = block->memory_barriers;
  const auto is_it = [=](const MemoryBarrierClocks& clocks) { return clocks.address == address; };
  known.erase(std::remove_if(known.begin(), known.end(), is_it), known.end());
}

// Where things complete early, a thread that was waiting goes on at once.
static void give_way_to_waiting(const void* on) {
  if (!settings.copies_complete_early) return;
  for (Thread& t : block->threads)
    if (&t != thread && t.state == State::ready && t.waits_on == on && !is_behind(*t.home, t.warp)) {
      t.waits_on = nullptr;
      run_thread(t);
      return;
    }
}

static bool end_phase_if_complete(uint32_t address, MemoryBarrier& barrier) {
  ++block->cluster->progress;
  if (barrier.pending || barrier.expected_bytes) return false;
  MemoryBarrierClocks& clocks = clocks_of_barrier(address, "mbarrier");
  clocks.completed.swap(clocks.arriving);
  clocks.arriving.clear();
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
  wake_waiting_on(&barrier);
  return true;
}

static void expect_pending(const MemoryBarrier& barrier, uint32_t count, const char* instruction) {
  if (barrier.pending < count)
    fail(std::string(instruction) + ": more arrivals than the mbarrier was initialised for");
}

uint32_t arrive_at_memory_barrier(const Thread& arriving, uint32_t address, uint32_t count, uint32_t bytes) {
  MemoryBarrier& barrier = memory_barrier(address, "mbarrier.arrive");
  expect_pending(barrier, count, "mbarrier.arrive");
  const uint32_t phase = barrier.phase;
  barrier.expected_bytes += int32_t(bytes);
  barrier.pending -= count;
  release(arriving, initialised_barrier(arriving, address, "mbarrier.arrive").arriving);
  if (end_phase_if_complete(address, barrier)) give_way_to_waiting(&barrier);
  return phase;
}

void arrive_for(const Released& before, uint32_t address, const char* instruction) {
  MemoryBarrier& barrier = memory_barrier(address, instruction);
  expect_pending(barrier, 1, instruction);
  barrier.pending -= 1;
  add_to(clocks_of_barrier(address, instruction).arriving, before);
  end_phase_if_complete(address, barrier);
}

void arrive_in_cluster(uint32_t address, uint32_t count, uint32_t bytes) {
  in_block_of(address, "mbarrier.arrive",
              [=](uint32_t local) { arrive_at_memory_barrier(*thread, local, count, bytes); });
}

void expect_bytes(uint32_t address, uint32_t bytes) {
  memory_barrier(address, "mbarrier.expect_tx").expected_bytes += int32_t(bytes);
}

void complete_bytes(uint32_t address, uint32_t bytes) {
  MemoryBarrier& barrier = memory_barrier(address, "a copy's mbarrier");
  barrier.expected_bytes -= int32_t(bytes);
  if (end_phase_if_complete(address, barrier)) give_way_to_waiting(&barrier);
}

bool wait_for_phase(uint32_t address, uint32_t parity) {
  MemoryBarrier& barrier = memory_barrier(address, "mbarrier.try_wait");
  initialised_barrier(*thread, address, "mbarrier.try_wait");
  while (barrier.phase == (parity & 1)) wait(State::waiting, "an mbarrier", &barrier);
  acquire(*thread, clocks_of_barrier(address, "mbarrier.try_wait").completed);
  return true;
}

bool test_phase(uint32_t address, uint32_t parity) {
  MemoryBarrier& barrier = memory_barrier(address, "mbarrier.test_wait");
  initialised_barrier(*thread, address, "mbarrier.test_wait");
  if (barrier.phase == (parity & 1)) poll("mbarrier.test_wait");
  const bool ended = barrier.phase != (parity & 1);
  if (ended) acquire(*thread, clocks_of_barrier(address, "mbarrier.test_wait").completed);
  return ended;
}

void arrive_after_copies(uint32_t address, bool counted) {
  MemoryBarrier& barrier = memory_barrier(address, "cp.async.mbarrier.arrive");
  if (!counted) ++barrier.pending;
  if (settings.copies_complete_early) {
    wait_for_all_copies();
    arrive_at_memory_barrier(*thread, address, 1);
  } else {
    block->late_arrivals.push_back({thread, address});
  }
}

}  // namespace emulator
