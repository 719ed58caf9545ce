// Which process runs next: always the one with the earliest clock. A process runs until it has to wait for a word or a
// place, or asks for something that depends on what others do up to now.
#pragma once
#include <exception>

#include "../../../fibers/stacks.h"
#include "deadlock.h"
#include "process.h"

namespace moec_simulation {

constexpr size_t stack_bytes = 256 << 20;    // reserved, not used: a process holds all its arrays
constexpr size_t stack_guard_bytes = 64 << 10;
constexpr uint64_t most_polls = 1'000'000;   // by which nothing has moved although nobody else can run

inline void switch_to_scheduler(Process& me) { fibers::switch_context(me.context, scheduler->caller); }

inline void wait(Process& me, Channel& on, Direction to) {
  me.state = State::waiting;
  me.waits_on = &on;
  me.waits_to = to;
  switch_to_scheduler(me);
}

// A word moved in cycle `time`: who waited for that can go on in the next.
inline void wake(Process* process, const Channel& on, uint64_t time) {
  scheduler->polls = 0;
  if (!process || process->state != State::waiting || process->waits_on != &on) return;
  process->state = State::ready;
  process->resumes_at = time + 1;
}

inline bool is_earliest(const Process& me) {
  for (const auto& other : scheduler->processes)
    if ((other->state == State::ready || other->state == State::polling) && other->next() < me.clock) return false;
  return true;
}

// Returns when no other process can do anything before the calling one's clock.
inline void let_others_catch_up(Process& me) {
  if (is_earliest(me)) return;
  me.state = State::polling;
  switch_to_scheduler(me);
  me.state = State::ready;
}

inline bool others_can_run(const Process& me) {
  for (const auto& other : scheduler->processes)
    if (other.get() != &me && other->state == State::ready) return true;
  return false;
}

// The answer "not yet" to a process that asks again and again.
inline void count_poll(const Process& me) {
  if (others_can_run(me)) return;
  if (++scheduler->polls > most_polls) report_deadlock("processes ask for words that cannot come");
}

inline Process* earliest() {
  Process* found = nullptr;
  for (const auto& process : scheduler->processes) {
    if (process->state == State::waiting || process->state == State::finished) continue;
    const bool earlier = !found || process->next() < found->next();
    const bool rather = found && process->next() == found->next() && process->state == State::ready &&
                        found->state == State::polling;
    if (earlier || rather) found = process.get();
  }
  return found;
}

inline void process_main() {
  Process& me = *scheduler->running;
  me.body();
  me.state = State::finished;
  switch_to_scheduler(me);
}

inline fibers::Stacks make_stacks(size_t count) try {
  return {count, stack_bytes, stack_guard_bytes};
} catch (const std::exception& error) {
  fail(wrong_setting, std::to_string(count) + " processes: " + error.what());
}

inline void run_all() {
  auto& processes = scheduler->processes;
  fibers::Stacks stacks = make_stacks(processes.size());
  for (size_t i = 0; i < processes.size(); ++i)
    fibers::prepare_context(processes[i]->context, stacks[i], stack_bytes, process_main);
  while (Process* next = earliest()) {
    scheduler->running = next;
    fibers::switch_context(scheduler->caller, next->context);
    scheduler->running = nullptr;
  }
  for (const auto& process : processes)
    if (process->state != State::finished) report_deadlock("no process can go on");
}

}  // namespace moec_simulation
