#include "barriers.h"

namespace emulator {

Barrier& named_barrier(int number) {
  if (number < 0 || number >= named_barriers)
    fail("barrier " + std::to_string(number) + " does not exist: a block has barriers 0 to 15");
  return block->barriers[number];
}

void open_if_complete(Barrier& barrier) {
  if (barrier.arrived == 0 || barrier.arrived < (barrier.expected ? barrier.expected : block->live)) return;
  barrier.arrived = barrier.expected = 0;
  barrier.completed.swap(barrier.arriving);
  barrier.arriving.clear();
  wake_waiting_on(&barrier);
}

// `expected` counts threads; 0 is all that have not exited.
static void arrive_at_barrier(Barrier& barrier, int expected) {
  if (expected % warp_size) fail("a barrier counts whole warps, not " + std::to_string(expected) + " threads");
  if (barrier.arrived && barrier.expected != expected)
    fail("a barrier was given two counts: " + std::to_string(barrier.expected) + " and " + std::to_string(expected));
  barrier.expected = expected;
  ++barrier.arrived;
  release(*thread, barrier.arriving);
}

void synchronize(int number, int expected) {
  Barrier& barrier = named_barrier(number);
  arrive_at_barrier(barrier, expected);
  const bool last = barrier.arrived >= (expected ? expected : block->live);
  if (last) open_if_complete(barrier);
  else wait(State::waiting, number ? "a named barrier" : "__syncthreads", &barrier);
  acquire(*thread, barrier.completed);
}

void arrive_only(int number, int expected) {
  Barrier& barrier = named_barrier(number);
  arrive_at_barrier(barrier, expected);
  open_if_complete(barrier);
}

void open_if_complete(Cluster& cluster) {
  if (!cluster.barrier.arrived || cluster.barrier.arrived < cluster.live) return;
  cluster.barrier.arrived = 0;
  cluster.barrier.completed.swap(cluster.barrier.arriving);
  cluster.barrier.arriving.clear();
  ++cluster.opened;
  wake_waiting_on(&cluster);
}

void arrive_at_cluster_barrier(bool releases) {
  Cluster& cluster = *block->cluster;
  if (thread->cluster_barriers > cluster.opened) fail("barrier.cluster.arrive: twice without barrier.cluster.wait");
  ++thread->cluster_barriers;
  ++cluster.barrier.arrived;
  if (releases) release(*thread, cluster.barrier.arriving);
  open_if_complete(cluster);
}

void wait_at_cluster_barrier() {
  Cluster& cluster = *block->cluster;
  while (thread->cluster_barriers > cluster.opened) wait(State::waiting, "barrier.cluster.wait", &cluster);
  acquire(*thread, cluster.barrier.completed);
}

}  // namespace emulator
