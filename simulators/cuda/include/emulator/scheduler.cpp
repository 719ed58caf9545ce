#include "scheduler.h"

namespace emulator {

void make_ready(Thread& t) {
  t.state = State::ready;
  t.home->warps[size_t(t.warp)].ready |= 1u << t.lane;
}

// The next ready lane of a warp behind `lane`, going round; -1 where none is ready.
static int next_lane(const Warp& warp, int lane) {
  if (!warp.ready) return -1;
  const int start = (lane + 1) % warp_size;
  const uint32_t turned = start ? (warp.ready >> start) | (warp.ready << (warp_size - start)) : warp.ready;
  return (__builtin_ctz(turned) + start) % warp_size;
}

// Lanes that ask who runs with them get their answer when no other lane of the warp can still join them: those that
// asked at the same place run together.
static bool converge(Block& b, int warp_index) {
  Thread* lanes = &b.threads[size_t(warp_index) * warp_size];
  const int count = std::min<int>(warp_size, int(b.threads.size()) - warp_index * warp_size);
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

static Thread* ready_in(Block& b, int warp_index, int lane) {
  const Warp& warp = b.warps[size_t(warp_index)];
  int found = next_lane(warp, lane);
  if (found < 0 && converge(b, warp_index)) found = next_lane(warp, lane);
  return found < 0 ? nullptr : &b.threads[size_t(warp_index) * warp_size + size_t(found)];
}

bool is_behind(const Block& b, int warp_index) {
  const size_t number = size_t(b.rank) * b.warps.size() + size_t(warp_index);
  return number < 32 && schedule.behind >> number & 1;
}

// A ready thread of the warps that are to fall behind, or of the others.
static Thread* ready_in_block(Block& b, bool behind) {
  const bool own = &b == thread->home;
  const int warps = int(b.warps.size());
  const int first = schedule.seed ? int(b.cluster->dice.below(uint32_t(warps))) : own ? thread->warp : 0;
  for (int i = 0; i < warps; ++i) {
    const int warp = (first + i) % warps;
    if (is_behind(b, warp) != behind) continue;
    if (Thread* found = ready_in(b, warp, own && warp == thread->warp ? thread->lane : warp_size - 1)) return found;
  }
  return nullptr;
}

static Thread* find_ready(bool behind) {
  Cluster& cluster = *thread->home->cluster;
  const size_t count = cluster.blocks.size();
  const size_t first = schedule.seed && count > 1 ? cluster.dice.below(uint32_t(count)) : size_t(thread->home->rank);
  for (size_t i = 0; i < count; ++i)
    if (Thread* found = ready_in_block(*cluster.blocks[(first + i) % count], behind)) return found;
  return nullptr;
}

// Threads that ask again and again whether something has happened are asked to look once more, as long as it might.
static bool wake_polling() {
  Cluster& cluster = *thread->home->cluster;
  if (cluster.progress == cluster.seen_progress) return false;
  cluster.seen_progress = cluster.progress;
  bool woken = false;
  for_each_thread(cluster, [&](Thread& t) {
    if (t.state != State::polling) return;
    make_ready(t);
    woken = true;
  });
  return woken;
}

[[noreturn]] static void report_deadlock() {
  std::map<std::string, int> waiting;
  for_each_thread(*thread->home->cluster, [&](const Thread& t) {
    if (t.state != State::exited) ++waiting[t.waits_for];
  });
  std::string where;
  for (const auto& [what, count] : waiting) {
    where += where.empty() ? "" : ", ";
    where += std::to_string(count) + " at " + what;
  }
  fail("deadlock: no thread can go on; threads waiting: " + where);
}

Thread* choose_next() {
  if (schedule.seed && !thread->home->cluster->dice.below(4)) complete_something();
  for (;;) {
    if (Thread* found = find_ready(false)) return found;
    if (wake_polling()) continue;
    if (complete_something()) continue;
    if (Thread* found = find_ready(true)) return found;
    report_deadlock();
  }
}

void run_thread(Thread& next) {
  Thread& me = *thread;
  block = next.home;
  if (&next == &me) return;
  thread = &next;
  fibers::switch_context(me.context, next.context);
}

void wait(State how, const char* for_what, const void* on) {
  thread->state = how;
  thread->waits_for = for_what;
  thread->waits_on = on;
  thread->home->warps[size_t(thread->warp)].ready &= ~(1u << thread->lane);
  run_thread(*choose_next());
}

void wake_waiting_on(const void* what) {
  ++block->cluster->progress;
  for_each_thread(*block->cluster, [=](Thread& t) {
    if (t.state == State::waiting && t.waits_on == what) make_ready(t);
  });
}

}  // namespace emulator
