// External memories: a beat occupies its memory for a while, and the first one of a loop takes the latency.
#pragma once
#include <cmath>

#include "scheduler.h"
#include "settings.h"

namespace moec_simulation {

inline size_t bank_of(const std::string& bundle, std::vector<Bank>& banks) {
  const auto& memories = settings().memories;
  const auto asked = memories.find(bundle);
  const std::string name = asked == memories.end() ? bundle : asked->second;
  for (size_t i = 0; i < banks.size(); ++i)
    if (banks[i].name == name) return i;
  banks.push_back({name});
  return banks.size() - 1;
}

inline void add_port(const char* bundle, const char* port, const void* start, uint64_t bytes, std::vector<Port>& ports,
                     std::vector<Bank>& banks) {
  const size_t bank = bank_of(bundle, banks);
  ++banks[bank].ports;
  ports.push_back({bundle, port, reinterpret_cast<uintptr_t>(start), bytes, bank});
}

void Region::add_memory(const char* bundle, const char* port, const void* start, uint64_t bytes) {
  add_port(bundle, port, start, bytes, scheduler->ports, scheduler->banks);
}

void Call::add_memory(const char* bundle, const char* port, const void* start, uint64_t bytes) {
  add_port(bundle, port, start, bytes, call->ports, call->banks);
}

// Several ports may be of the same memory: a process uses those that it is called with.
inline void find_ports(Process& me) {
  for (size_t i = 0; i < scheduler->ports.size(); ++i)
    if (is_name_in(scheduler->ports[i].name, me.arguments)) me.ports.push_back(i);
  for (size_t i = 0; i < scheduler->ports.size() && me.ports.empty(); ++i) me.ports.push_back(i);
}

inline const Port& port_at(Process& me, uintptr_t address, size_t bytes) {
  if (me.ports.empty()) find_ports(me);
  const Port* before = nullptr;  // the last one that starts at or before the address
  for (const size_t i : me.ports) {
    const Port& port = scheduler->ports[i];
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
