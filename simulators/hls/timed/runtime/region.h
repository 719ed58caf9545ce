// Runs a region and says what it saw.
#pragma once
#include "channel.h"
#include "loops.h"
#include "memory.h"

namespace moec_simulation {

Region::Region() {
  if (scheduler) fail(wrong_setting, "a DATAFLOW region inside a process: the timed simulation runs one level of them");
  scheduler = std::make_unique<Scheduler>();
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

inline void expect_settings_used() {
  for (const auto& asked : settings().depths) {
    bool known = asked.first == "*";
    for (const Channel* channel : channels) known |= channel->name == asked.first;
    if (!known) fail(wrong_setting, "a depth was given for channel " + asked.first + ", which is not in this design");
  }
  for (const auto& asked : settings().stages) {
    bool known = false;
    for (const Channel* channel : channels) known |= channel->name == asked.first;
    if (!known) fail(wrong_setting, "a stage was given for channel " + asked.first + ", which is not in this design");
  }
  for (const auto& asked : settings().memories) {
    bool known = false;
    for (const Port& port : scheduler->ports) known |= port.bundle == asked.first;
    if (!known) fail(wrong_setting, "a memory was given for bundle " + asked.first + ", which is not in this design");
  }
}

inline void write_process(std::FILE* file, const Process& process) {
  std::fprintf(file,
               "{\"name\": \"%s\", \"end\": %llu, \"busy\": %llu, \"read_stall\": %llu, \"write_stall\": %llu, "
               "\"memory_stall\": %llu}",
               process.name.c_str(), static_cast<unsigned long long>(process.clock),
               static_cast<unsigned long long>(process.busy), static_cast<unsigned long long>(process.read_stall),
               static_cast<unsigned long long>(process.write_stall),
               static_cast<unsigned long long>(process.memory_stall));
}

inline void write_channel(std::FILE* file, const Channel& channel) {
  std::fprintf(file, "{\"name\": \"%s\", \"depth\": %llu, \"peak\": %llu, \"words\": %llu, ", channel.name.c_str(),
               static_cast<unsigned long long>(channel.depth), static_cast<unsigned long long>(channel.peak),
               static_cast<unsigned long long>(channel.written));
  std::fprintf(file, "\"writer\": \"%s\", \"reader\": \"%s\"}", channel.writer ? channel.writer->name.c_str() : "",
               channel.reader ? channel.reader->name.c_str() : "");
}

inline void write_report() {
  if (settings().report.empty()) return;
  std::FILE* file = std::fopen(settings().report.c_str(), "a");
  if (!file) fail(wrong_setting, settings().report + ": cannot be written");
  uint64_t cycles = 0;
  for (const auto& process : scheduler->processes) cycles = std::max(cycles, process->clock);
  std::fprintf(file, "{\"cycles\": %llu, \"processes\": [", static_cast<unsigned long long>(cycles));
  for (size_t i = 0; i < scheduler->processes.size(); ++i) {
    if (i) std::fprintf(file, ", ");
    write_process(file, *scheduler->processes[i]);
  }
  std::fprintf(file, "], \"channels\": [");
  for (size_t i = 0; i < channels.size(); ++i) {
    if (i) std::fprintf(file, ", ");
    write_channel(file, *channels[i]);
  }
  std::fprintf(file, "]}\n");
  std::fclose(file);
}

void Region::run() {
  expect_settings_used();
  run_all();
  expect_nothing_left();
  write_report();
}

}  // namespace moec_simulation
