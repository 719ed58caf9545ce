// External memories: a beat occupies its memory for a while, and the first one of a loop takes the latency.
#pragma once
#include <cmath>

#include "scheduler.h"
#include "settings.h"

namespace moec_simulation {

inline size_t bank_of(const std::string& bundle) {
  const auto& memories = settings().memories;
  const auto asked = memories.find(bundle);
  const std::string name = asked == memories.end() ? bundle : asked->second;
  auto& banks = scheduler->banks;
  for (size_t i = 0; i < banks.size(); ++i)
    if (banks[i].name == name) return i;
  banks.push_back({name});
  return banks.size() - 1;
}

void Region::add_memory(const char* bundle, const char* port, const void* start, uint64_t bytes) {
  const size_t bank = bank_of(bundle);
  ++scheduler->banks[bank].ports;
  scheduler->ports.push_back({bundle, port, reinterpret_cast<uintptr_t>(start), bytes, bank});
}

inline const Port& port_at(const Process& me, uintptr_t address, size_t bytes) {
  const Port* before = nullptr;  // the last one that starts at or before the address
  for (const Port& port : scheduler->ports) {
    if (address >= port.start && address + bytes <= port.start + port.bytes) return port;
    if (address >= port.start && (!before || port.start > before->start)) before = &port;
  }
  std::string where = before ? "byte " + std::to_string(address - before->start) + " behind the start of port " + before->name +
                                   ", which has a depth of " + std::to_string(before->bytes) + " bytes"
                             : "an address that no port has";
  fail(outside_of_memory, "process " + me.name + " accesses " + where +
                              ": correct the index, or the depth of the pragma INTERFACE");
}

void access_memory(const void* address, size_t bytes) {
  Process& me = running("accesses memory at", "a port");
  Bank& bank = scheduler->banks[port_at(me, reinterpret_cast<uintptr_t>(address), bytes).bank];
  const double total = settings().total_beat_cycles;
  if (bank.ports > 1 || total > 0) let_others_catch_up(me);  // beats are served in the order of time
  // Requests are outstanding: within a burst a beat comes when the memory has it, also where that is between two clocks.
  const double starts = double(me.clock) >= bank.free_at + 1 ? double(me.clock) : bank.free_at;
  bank.free_at = starts + settings().beat_cycles;
  uint64_t clock = std::max(me.clock, uint64_t(std::ceil(starts)));
  if (total > 0) {  // all ports together may deliver several beats in a cycle
    const double all_start = std::max(starts, scheduler->memory_free_at);
    scheduler->memory_free_at = all_start + total;
    clock = std::max(clock, uint64_t(all_start));
  }
  me.memory_stall += clock - me.clock;
  me.clock = clock;
}

}  // namespace moec_simulation
