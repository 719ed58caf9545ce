// When words of a channel move.
#pragma once
#include "scheduler.h"
#include "settings.h"

namespace moec_simulation {

inline uint64_t asked_depth(const std::string& name, uint64_t declared) {
  const auto& depths = settings().depths;
  auto found = depths.find(name);
  if (found == depths.end()) found = depths.find("*");
  if (found == depths.end()) return declared;
  const double depth = number(found->second, "depth");
  if (depth < 1) fail(wrong_setting, "channel " + name + ": depth " + found->second + "; expected 1 or more");
  return uint64_t(depth);
}

// A channel has one writer and one reader, else the order of words depends on time.
inline void claim(Process*& owner, Process& me, const std::string& name, const char* does) {
  if (!owner) owner = &me;
  if (owner != &me)
    fail(misused_channel, "channel " + name + ": both " + owner->name + " and " + me.name + " " + does +
                              " it; a channel has one writer and one reader");
}

Channel::Channel(const char* name, int declared) : name(name), depth(0) {
  set_depth(declared);
  channels.push_back(this);
}

Channel::~Channel() { channels.erase(std::find(channels.begin(), channels.end(), this)); }

void Channel::set_depth(int declared) {
  if (declared < 1) fail(misused_channel, "channel " + name + ": depth " + std::to_string(declared) + "; expected 1 or more");
  depth = asked_depth(name, uint64_t(declared));
  size_t kept = 1;
  while (kept < depth + 1) kept *= 2;
  write_times_.assign(kept, 0);
  read_times_.assign(kept, 0);
}

void Channel::begin_write() {
  Process& me = running("writes channel", name);
  claim(writer, me, name, "write");
  if (written - read == depth) wait(me, *this, Direction::writes);
  if (written >= depth) {
    const uint64_t free_at = read_time(written - depth) + 1;
    if (free_at > me.clock) me.write_stall += free_at - me.clock, me.clock = free_at;
  }
  if (written) {
    const uint64_t port_free_at = write_time(written - 1) + 1;
    if (port_free_at > me.clock) me.busy += port_free_at - me.clock, me.clock = port_free_at;
  }
  write_time(written++) = me.clock;
  wake(reader, *this, me.clock);
}

void Channel::begin_read() {
  Process& me = running("reads channel", name);
  claim(reader, me, name, "read");
  if (written == read) wait(me, *this, Direction::reads);
  const uint64_t there_at = write_time(read) + 1;
  if (read) {
    const uint64_t port_free_at = read_time(read - 1) + 1;
    if (port_free_at > me.clock) me.busy += port_free_at - me.clock, me.clock = port_free_at;
  }
  if (there_at > me.clock) me.read_stall += there_at - me.clock, me.clock = there_at;
  read_time(read) = me.clock;
  measure(read++);
  wake(writer, *this, me.clock);
}

// How many words there were when this one was written: all before it that were not read until then. Whoever is simulated
// first, they have been read by now.
void Channel::measure(uint64_t word) {
  while (left_ < word && read_time(left_) < write_time(word)) ++left_;
  peak = std::max(peak, word + 1 - left_);
}

bool Channel::is_empty() {
  Process& me = running("asks for words of channel", name);
  claim(reader, me, name, "read");
  if (written == read) let_others_catch_up(me);
  const bool empty = written == read || write_time(read) + 1 > me.clock;
  if (empty) count_poll(me);
  return empty;
}

bool Channel::is_full() {
  Process& me = running("asks for places in channel", name);
  claim(writer, me, name, "write");
  if (written - read == depth) let_others_catch_up(me);
  const bool full = written - read == depth || (written >= depth && read_time(written - depth) + 1 > me.clock);
  if (full) count_poll(me);
  return full;
}

}  // namespace moec_simulation
