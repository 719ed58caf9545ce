// Which thread of a block runs next, and what happens when none can.
//
// A thread runs until it has to wait. Then its own warp goes on, for the rest of a warp is most likely at the same
// instruction, then the other warps in order. Where nobody can go on, copies that are still under way complete: the
// latest moment that the hardware allows. A schedule (schedule.h) may have warps fall behind, or draw the order.
#pragma once
#include <algorithm>
#include <map>

#include "block.h"

namespace emulator {

inline bool complete_something();  // carries out operations that are under way; false where there are none

inline void make_ready(Thread& t) {
  t.state = State::ready;
  block->warps[t.warp].ready |= 1u << t.lane;
}

inline int lanes_in(uint32_t mask) { return __builtin_popcount(mask); }

// The next ready lane of a warp behind `lane`, going round; -1 where none is ready.
inline int next_lane(const Warp& warp, int lane) {
  if (!warp.ready) return -1;
  const int start = (lane + 1) % warp_size;
  const uint32_t turned = start ? (warp.ready >> start) | (warp.ready << (warp_size - start)) : warp.ready;
  return (__builtin_ctz(turned) + start) % warp_size;
}

// Lanes that ask who runs with them get their answer when no other lane of the warp can still join them: those that
// asked at the same place run together.
inline bool converge(int warp_index) {
  Thread* lanes = &block->threads[size_t(warp_index) * warp_size];
  const int count = std::min<int>(warp_size, int(block->threads.size()) - warp_index * warp_size);
  const void* place = nullptr;
  uint32_t together = 0;
  for (int lane = 0; lane < count; ++lane) {
    if (lanes[lane].state != State::converging) continue;
    if (!together) place = lanes[lane].waits_on;
    if (lanes[lane].waits_on == place) together |= 1u << lane;
  }
  for (int lane = 0; lane < count; ++lane)
    if (together >> lane & 1) {
      lanes[lane].converged = together;
      make_ready(lanes[lane]);
    }
  return together != 0;
}

inline Thread* ready_in(int warp_index, int lane) {
  int found = next_lane(block->warps[warp_index], lane);
  if (found < 0 && converge(warp_index)) found = next_lane(block->warps[warp_index], lane);
  return found < 0 ? nullptr : &block->threads[size_t(warp_index) * warp_size + found];
}

inline bool is_behind(int warp_index) { return warp_index < 32 && schedule.behind >> warp_index & 1; }

// A ready thread of the warps that are to fall behind, or of the others.
inline Thread* find_ready(bool behind) {
  const int warps = int(block->warps.size());
  const int first = schedule.seed ? int(block->dice.below(uint32_t(warps))) : thread->warp;
  for (int i = 0; i < warps; ++i) {
    const int warp = (first + i) % warps;
    if (is_behind(warp) != behind) continue;
    if (Thread* found = ready_in(warp, warp == thread->warp ? thread->lane : warp_size - 1)) return found;
  }
  return nullptr;
}

// Threads that ask again and again whether something has happened are asked to look once more, as long as it might.
inline bool wake_polling() {
  if (block->progress == block->seen_progress) return false;
  block->seen_progress = block->progress;
  bool woken = false;
  for (Thread& t : block->threads)
    if (t.state == State::polling) {
      make_ready(t);
      woken = true;
    }
  return woken;
}

[[noreturn]] inline void report_deadlock() {
  std::map<std::string, int> waiting;
  for (const Thread& t : block->threads)
    if (t.state != State::exited) ++waiting[t.waits_for];
  std::string where;
  for (const auto& [what, count] : waiting) {
    where += where.empty() ? "" : ", ";
    where += std::to_string(count) + " at " + what;
  }
  fail("deadlock: no thread can go on; threads waiting: " + where);
}

inline Thread* choose_next() {
  if (schedule.seed && !block->dice.below(4)) complete_something();
  for (;;) {
    if (Thread* found = find_ready(false)) return found;
    if (wake_polling()) continue;
    if (complete_something()) continue;
    if (Thread* found = find_ready(true)) return found;
    report_deadlock();
  }
}

inline void run_thread(Thread& next) {
  Thread& me = *thread;
  if (&next == &me) return;
  thread = &next;
  fibers::switch_context(me.context, next.context);
}

// The calling thread stops until another makes it ready.
inline void wait(State how, const char* for_what, const void* on = nullptr) {
  thread->state = how;
  thread->waits_for = for_what;
  thread->waits_on = on;
  block->warps[thread->warp].ready &= ~(1u << thread->lane);
  run_thread(*choose_next());
}

inline void wake_waiting_on(const void* what) {
  ++block->progress;
  for (Thread& t : block->threads)
    if (t.state == State::waiting && t.waits_on == what) make_ready(t);
}

// Gives way once, for a thread that looks again and again whether something has happened.
inline void poll(const char* for_what) { wait(State::polling, for_what); }

}  // namespace emulator
