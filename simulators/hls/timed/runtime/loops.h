// Iterations, and what they may not read.
#pragma once
#include <cstring>

#include "pipeline.h"

namespace moec_simulation {

Loop::Loop(Kind kind) {
  Process& me = running("enters", "a pipelined loop");
  me.nest = ++me.nests;
  me.nest_start = me.iteration;
  me.uses_memory = kind == uses_memory;
  if (kind == computes) return;
  me.clock += settings().memory_latency;
  me.memory_stall += settings().memory_latency;
}

Loop::~Loop() {
  Process& me = *scheduler->running;
  if (me.iteration != me.nest_start) drain(me);
  else if (me.uses_memory) {  // without iterations nothing was asked of a memory
    me.clock -= settings().memory_latency;
    me.memory_stall -= settings().memory_latency;
  }
  me.nest = no_nest;
}

void declare_independent(const char* name, const void* start, size_t bytes, size_t element, uint64_t distance) {
  Process& me = running("declares independent", name);
  const auto address = reinterpret_cast<uintptr_t>(start);
  for (Independent& known : me.independents)
    if (known.start == address && known.name == name) {
      known.nest = me.nest;
      return;
    }
  me.independents.push_back({name, address, bytes, element, distance, me.nest, std::vector<uint64_t>(bytes / element)});
}

inline void expect_independent(const Process& me, const Independent& array, size_t element) {
  const uint64_t written = array.writes[element];
  if (array.nest != me.nest || written <= me.nest_start || written == me.iteration) return;
  const uint64_t distance = me.iteration - written;
  if (array.distance && distance >= array.distance) return;
  fail(false_dependence, "false pragma DEPENDENCE: process " + me.name + " reads element " + std::to_string(element) +
                             " of " + array.name + " " + std::to_string(distance) +
                             " iterations behind the one that wrote it, in the same loops: remove the pragma, or give the distance");
}

inline void watch(const void* address, size_t bytes, bool writes) {
  if (!scheduler || !scheduler->running) return;
  Process& me = *scheduler->running;
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (Independent& array : me.independents) {
    if (first < array.start || first >= array.start + array.bytes) continue;
    const size_t end = std::min(array.bytes, first - array.start + bytes);
    for (size_t element = (first - array.start) / array.element; element * array.element < end; ++element) {
      if (writes)
        array.writes[element] = me.iteration;
      else
        expect_independent(me, array, element);
    }
  }
}

}  // namespace moec_simulation

// The functions of ThreadSanitizer that the compiler calls for loads and stores; its own library is not linked.
#define WATCH_ACCESS(kind, bytes, writes)                                                                           \
  void __tsan_##kind##bytes(void* address) { moec_simulation::watch(address, bytes, writes); }                      \
  void __tsan_unaligned_##kind##bytes(void* address) { moec_simulation::watch(address, bytes, writes); }
#define WATCH_KIND(kind, writes)  \
  WATCH_ACCESS(kind, 1, writes)   \
  WATCH_ACCESS(kind, 2, writes)   \
  WATCH_ACCESS(kind, 4, writes)   \
  WATCH_ACCESS(kind, 8, writes)   \
  WATCH_ACCESS(kind, 16, writes)  \
  void __tsan_##kind##_range(void* address, size_t bytes) { moec_simulation::watch(address, bytes, writes); }
extern "C" {
WATCH_KIND(read, false)
WATCH_KIND(write, true)
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  moec_simulation::watch(from, bytes, false);
  moec_simulation::watch(to, bytes, true);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  moec_simulation::watch(from, bytes, false);
  moec_simulation::watch(to, bytes, true);
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  moec_simulation::watch(to, bytes, true);
  return std::memset(to, value, bytes);
}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
#undef WATCH_KIND
#undef WATCH_ACCESS
