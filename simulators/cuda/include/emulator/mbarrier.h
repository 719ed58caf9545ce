// mbarrier: a barrier in shared memory whose phase ends when all arrivals and all announced bytes are in.
#pragma once
#include "async_copy.h"
#include "cluster.h"

namespace emulator {

constexpr uint32_t most_arrivals = (1u << 15) - 1;

// What the eight bytes hold. The hardware keeps its own layout secret.
struct MemoryBarrier {
  int32_t expected_bytes;
  uint32_t pending : 15, arrivals : 15, phase : 1;
};
static_assert(sizeof(MemoryBarrier) == 8);

// Arrivals that take place when the cp.async before them are complete.
struct LateArrival {
  Thread* owner;
  uint32_t barrier;
};

MemoryBarrier& memory_barrier(uint32_t address, const char* instruction);

void initialise_barrier(uint32_t address, uint32_t arrivals);

// What this thread has initialised can be seen by TMA, and in other blocks of a cluster, from now on.
void publish_barriers();

void expect_published(uint32_t address, const char* instruction);

void fence_for_asynchronous_proxy();

void invalidate_barrier(uint32_t address);

// Announces bytes and arrives; gives the phase that was arrived at.
uint32_t arrive_at_memory_barrier(const Thread& arriving, uint32_t address, uint32_t count, uint32_t bytes = 0);

// The hardware arrives, `before` which a thread had come so far: see order.h.
void arrive_for(const Released& before, uint32_t address, const char* instruction);

// A thread arrives at a barrier anywhere in the cluster.
void arrive_in_cluster(uint32_t address, uint32_t count, uint32_t bytes = 0);

void expect_bytes(uint32_t address, uint32_t bytes);

void complete_bytes(uint32_t address, uint32_t bytes);

// Waits until the phase of this parity has ended.
bool wait_for_phase(uint32_t address, uint32_t parity);

// Asks once; others run before the answer where it would be no.
bool test_phase(uint32_t address, uint32_t parity);

// cp.async.mbarrier.arrive: without `counted`, the arrival is one more than the mbarrier was initialised for.
void arrive_after_copies(uint32_t address, bool counted);

}  // namespace emulator
