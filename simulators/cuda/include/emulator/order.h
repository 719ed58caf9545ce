// What is known to have happened before what: a vector clock for each thread of a cluster.
//
// Entry u of thread t's clock says up to which of u's points in time everything happened before what t does now. A
// thread releases its clock where it arrives at a barrier, and takes those of the others where it goes on behind it.
#pragma once
#include <algorithm>

#include "block.h"

namespace emulator {

#ifdef EMULATOR_WATCH
constexpr bool watched = true;
#else
constexpr bool watched = false;
#endif

uint32_t* clock_of(const Thread& t);

inline uint32_t time_of(const Thread& t) { return clock_of(t)[t.number]; }

// What barriers have collected; empty where nobody arrived.
using Released = std::vector<uint32_t>;

void release(const Thread& t, Released& released);

void add_to(Released& released, const Released& more);

void acquire(const Thread& t, const Released& released);

// All of `count` threads from `first` on, that `takes_part` says, wait for one another.
template <class TakesPart>
void order_together(size_t first, size_t count, TakesPart takes_part) {
  if (!watched) return;
  Released released;
  const size_t end = std::min(first + count, block->threads.size());
  for (size_t i = first; i < end; ++i)
    if (takes_part(i - first)) release(block->threads[i], released);
  for (size_t i = first; i < end; ++i)
    if (takes_part(i - first)) acquire(block->threads[i], released);
}

void start_clocks(Cluster& cluster);

}  // namespace emulator
