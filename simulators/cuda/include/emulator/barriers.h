// Barriers of a block: __syncthreads is number 0 and waits for every thread that has not exited.
#pragma once
#include "order.h"
#include "scheduler.h"

namespace emulator {

Barrier& named_barrier(int number);

void open_if_complete(Barrier& barrier);

void synchronize(int number, int expected);

void arrive_only(int number, int expected);

// barrier.cluster: all threads of the cluster that have not exited.
void open_if_complete(Cluster& cluster);

void arrive_at_cluster_barrier(bool releases);

void wait_at_cluster_barrier();

}  // namespace emulator

inline void __syncthreads() { emulator::synchronize(0, 0); }
