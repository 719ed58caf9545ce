// Says who waits for whom when nobody can go on.
#pragma once
#include <cctype>

#include "process.h"

namespace moec_simulation {

inline bool is_name_in(const std::string& name, const std::string& text) {
  const auto is_letter = [&](size_t at) { return at < text.size() && (std::isalnum(text[at]) || text[at] == '_'); };
  for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1))
    if (!(at && is_letter(at - 1)) && !is_letter(at + name.size())) return true;
  return false;
}

// The process at the other end. One that has not used the channel so far is known by what it was called with.
inline const Process* who_could_help(const Process& waiting) {
  const Channel& channel = *waiting.waits_on;
  const Process* known = waiting.waits_to == Direction::reads ? channel.writer : channel.reader;
  if (known) return known;
  for (const auto& other : scheduler->processes)
    if (other.get() != &waiting && is_name_in(channel.name, other->arguments)) return other.get();
  return nullptr;
}

inline std::string fill(const Channel& channel) {
  return std::to_string(channel.written - channel.read) + " of " + std::to_string(channel.depth) + " words";
}

inline std::string describe(const Process& process) {
  std::string text = "  process " + process.name + " in cycle " + std::to_string(process.clock) + " ";
  if (process.state == State::finished) return text + "has finished\n";
  if (process.state != State::waiting) return text + "asks whether it can go on\n";
  const bool reads = process.waits_to == Direction::reads;
  const Process* other = who_could_help(process);
  text += std::string("waits to ") + (reads ? "read" : "write") + " channel " + process.waits_on->name + " (" +
          fill(*process.waits_on) + "), ";
  text += (other ? "which " + other->name : std::string("which no other process")) + (reads ? " writes" : " reads");
  if (!process.late.empty()) text += "; " + std::to_string(process.late.size()) + " words are frozen in its pipeline";
  return text + "\n";
}

// The processes that wait for each other in a circle, "a -> b -> a"; empty where there is no circle.
inline std::string circle() {
  for (const auto& start : scheduler->processes) {
    std::string path = start->name;
    const Process* at = start.get();
    for (size_t steps = 0; at && at->state == State::waiting && steps < scheduler->processes.size(); ++steps) {
      at = who_could_help(*at);
      if (at) path += " -> " + at->name;
      if (at == start.get()) return path;
    }
  }
  return "";
}

[[noreturn]] inline void report_deadlock(const std::string& what) {
  std::string text = "deadlock: " + what;
  const std::string round = circle();
  if (!round.empty()) text += "; they wait in a circle: " + round;
  text += "\n";
  for (const auto& process : scheduler->processes) text += describe(*process);
  for (const Channel* channel : channels)
    text += "  channel " + channel->name + " holds " + fill(*channel) + " after " + std::to_string(channel->written) + "\n";
  fail(deadlock, text);
}

}  // namespace moec_simulation
