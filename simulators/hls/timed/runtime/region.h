// Runs a region and says what it saw.
#pragma once
#include "channel.h"
#include "loops.h"
#include "memory.h"

namespace moec_simulation {

Region::Region(const char* name) : name_(name) {
  if (scheduler) fail(wrong_setting, "a DATAFLOW region inside a process: the timed simulation runs one level of them");
  scheduler = std::make_unique<Scheduler>();
  if (!call) return;
  scheduler->ports = call->ports;
  scheduler->banks = call->banks;
}

Region::~Region() { scheduler.reset(); }

void Region::add(const char* name, const char* arguments, std::function<void()> body) {
  auto process = std::make_unique<Process>();
  process->name = name;
  process->arguments = arguments;
  process->body = std::move(body);
  scheduler->processes.push_back(std::move(process));
}

inline void expect_nothing_left() {
  for (const Channel* channel : channels)
    if (channel->written != channel->read)
      fail(misused_channel, "channel " + channel->name + " holds " + std::to_string(channel->written - channel->read) +
                                " words that nobody read when all processes have finished");
}

inline std::set<std::string> names_of_channels() {
  std::set<std::string> names;
  for (const Channel* channel : channels) names.insert(channel->name);
  return names;
}

inline void expect_settings_used(const std::set<std::string>& names, const std::vector<Port>& ports) {
  for (const auto& asked : settings().depths)
    if (asked.first != "*" && !names.count(asked.first))
      fail(wrong_setting, "a depth was given for channel " + asked.first + ", which is not in this design");
  for (const auto& asked : settings().stages)
    if (!names.count(asked.first))
      fail(wrong_setting, "a stage was given for channel " + asked.first + ", which is not in this design");
  for (const auto& asked : settings().memories) {
    bool known = false;
    for (const Port& port : ports) known |= port.bundle == asked.first;
    if (!known) fail(wrong_setting, "a memory was given for bundle " + asked.first + ", which is not in this design");
  }
}

inline std::string field(const char* name, uint64_t value) {
  return std::string(", \"") + name + "\": " + std::to_string(value);
}

inline std::string text_field(const char* name, const std::string& value) {
  return std::string("\"") + name + "\": \"" + value + "\"";
}

inline std::string as_json(const Process& process) {
  return "{" + text_field("name", process.name) + field("end", process.clock) + field("busy", process.busy) +
         field("read_stall", process.read_stall) + field("write_stall", process.write_stall) +
         field("memory_stall", process.memory_stall) + "}";
}

inline std::string as_json(const Channel& channel) {
  return "{" + text_field("name", channel.name) + field("depth", channel.depth) + field("peak", channel.peak) +
         field("words", channel.written) + ", " + text_field("writer", channel.writer ? channel.writer->name : "") + ", " +
         text_field("reader", channel.reader ? channel.reader->name : "") + "}";
}

template <class Pointers> std::string listed(const Pointers& pointers) {
  std::string text;
  for (const auto& pointer : pointers) text += (text.empty() ? "" : ", ") + as_json(*pointer);
  return "[" + text + "]";
}

// A line per call, with what each of its regions took.
inline void write_report(uint64_t cycles, const std::string& regions) {
  if (settings().report.empty()) return;
  std::FILE* file = std::fopen(settings().report.c_str(), "a");
  if (!file) fail(wrong_setting, settings().report + ": cannot be written");
  std::fprintf(file, "{\"cycles\": %llu, \"regions\": [%s]}\n", static_cast<unsigned long long>(cycles), regions.c_str());
  std::fclose(file);
}

void Region::run() {
  const auto names = names_of_channels();
  if (!call) expect_settings_used(names, scheduler->ports);
  run_all();
  expect_nothing_left();
  uint64_t cycles = 0;
  for (const auto& process : scheduler->processes) cycles = std::max(cycles, process->clock);
  const std::string report = "{" + text_field("name", name_) + field("cycles", cycles) + ", \"processes\": " +
                             listed(scheduler->processes) + ", \"channels\": " + listed(channels) + "}";
  if (!call) return write_report(cycles, report);
  call->cycles += cycles;
  call->regions += (call->regions.empty() ? "" : ", ") + report;
  call->names.insert(names.begin(), names.end());
}

Call::Call() {
  if (call) fail(wrong_setting, "a function around DATAFLOW regions that calls another one: the timed simulation runs one");
  call = std::make_unique<CallState>();
}

Call::~Call() {
  expect_settings_used(call->names, call->ports);
  write_report(call->cycles, call->regions);
  call.reset();
}

}  // namespace moec_simulation
