// When words of a channel move.
#pragma once
#include "pipeline.h"

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

uint64_t Channel::place_free_at() const {
  return written < depth ? 0 : read_times_[(written - depth) & (read_times_.size() - 1)] + 1;
}

void Channel::begin_write() {
  Process& me = running("writes channel", name);
  claim(writer, me, name, "write");
  if (is_pipelined(me)) return enter(me, *this);
  ++on_their_way;
  wait_for_place(me, *this);
  if (written) wait_until(me, write_time(written - 1) + 1, me.busy);  // one port
  write_at(me.clock);
}

void Channel::write_at(uint64_t time) {
  --on_their_way;
  write_time(written++) = time;
  wake(reader, *this, time);
}

void Channel::settle() {
  for (; !flushed.empty() && written - read < depth; flushed.pop_front()) {
    uint64_t time = std::max(flushed.front().time, place_free_at());
    if (written) time = std::max(time, write_time(written - 1) + 1);  // one port
    arrived.push_back({flushed.front().iteration, time});
    write_at(time);
  }
}

void Channel::begin_read() {
  Process& me = running("reads channel", name);
  claim(reader, me, name, "read");
  if (taken != read) {  // twice in an iteration: one port, and the first time is over
    me.taken.erase(std::find(me.taken.begin(), me.taken.end(), this));
    free_place(me.clock);
  }
  while (written == taken) wait(me, *this, Direction::reads);
  if (taken) wait_until(me, read_time(taken - 1) + 1, me.busy);
  wait_until(me, write_time(taken) + 1, me.read_stall);
  ++taken;
  if (is_pipelined(me))
    me.taken.push_back(this);
  else
    free_place(me.clock);
}

void Channel::free_place(uint64_t time) {
  read_time(read) = time;
  measure(read++);
  settle();
  wake(writer, *this, time);
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
  if (written == taken) let_others_catch_up(me);
  const bool empty = written == taken || write_time(taken) + 1 > me.clock;
  if (empty) count_poll(me);
  return empty;
}

bool Channel::is_full() {
  Process& me = running("asks for places in channel", name);
  claim(writer, me, name, "write");
  const uint64_t promised = written + on_their_way;
  if (promised - read >= depth) let_others_catch_up(me);
  const bool full = promised - read >= depth || (promised >= depth && read_time(promised - depth) + 1 > me.clock);
  if (full) count_poll(me);
  return full;
}

}  // namespace moec_simulation
