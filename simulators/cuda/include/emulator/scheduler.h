// Which thread of a cluster runs next, and what happens when none can.
//
// A thread runs until it has to wait. Then its own warp goes on, for the rest of a warp is most likely at the same
// instruction, then the other warps in order. Where nobody can go on, copies that are still under way complete: the
// latest moment that the hardware allows. A schedule (schedule.h) may have warps fall behind, or draw the order.
#pragma once
#include <algorithm>
#include <map>

#include "block.h"

namespace emulator {

bool complete_something();  // carries out operations that are under way; false where there are none

void make_ready(Thread& t);

inline int lanes_in(uint32_t mask) { return __builtin_popcount(mask); }

// The schedule numbers the warps of a cluster.
bool is_behind(const Block& b, int warp_index);

template <class Act>
void for_each_thread(Cluster& cluster, Act act) {
  for (const auto& b : cluster.blocks)
    for (Thread& t : b->threads) act(t);
}

Thread* choose_next();

void run_thread(Thread& next);

// The calling thread stops until another makes it ready.
void wait(State how, const char* for_what, const void* on = nullptr);

void wake_waiting_on(const void* what);

// Gives way once, for a thread that looks again and again whether something has happened.
inline void poll(const char* for_what) { wait(State::polling, for_what); }

}  // namespace emulator
