// The state of the emulated driver: streams, captures, graphs, memory, and how often each function was called.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace driver {

enum Result : int {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  invalid_handle = 400,
  illegal_address = 700,
  capture_unsupported = 900,
  capture_invalidated = 901,
  capture_unjoined = 904,
  capture_isolation = 905,
};
enum Mode : int { global = 0, of_thread = 1, relaxed = 2 };

using Work = std::function<Result()>;

// The recorded work of a capture, with the addresses and numbers that it had then.
struct Graph {
  std::vector<Work> work;
};

struct Capture {
  Mode mode;
  Graph graph;
  Result broken = success;  // what made it invalid
};

inline std::recursive_mutex turn;
inline std::map<void*, Capture> captures;  // by stream
inline std::map<std::string, int64_t> counts;
inline std::map<char*, size_t> pinned;  // memory of the host by address, with its bytes
inline std::set<void*> destroyed;       // streams
inline int64_t in_use = 0;              // bytes of the device's memory
inline thread_local Mode thread_mode = global;

inline void count(const char* what) { ++counts[what]; }

inline Capture* capture_on(void* stream) {
  auto found = captures.find(stream);
  return found == captures.end() ? nullptr : &found->second;
}

// Calls that allocate, free or wait are errors during a capture of another mode than relaxed, and break it.
inline Result potentially_unsafe() {
  if (thread_mode == relaxed) return success;
  for (auto& [stream, capture] : captures)
    if (capture.mode != relaxed) return capture.broken = capture_unsupported;
  return success;
}

// Does work in the order of a stream: at once, or when the graph that is being captured is launched.
inline Result submit(void* stream, Work work) {
  Capture* capture = capture_on(stream);
  if (!capture) return work();
  if (capture->broken) return capture_invalidated;
  capture->graph.work.push_back(std::move(work));
  return success;
}

inline bool is_pinned(const void* address, size_t bytes) {
  char* first = static_cast<char*>(const_cast<void*>(address));
  auto behind = pinned.upper_bound(first);
  if (behind == pinned.begin()) return false;
  auto [begin, size] = *std::prev(behind);
  return first + bytes <= begin + size;
}

// A copy from or to the host. A capture keeps the address, so memory that the caller may free is refused there.
inline Result copy_host(const char* what, void* to, const void* from, size_t bytes, const void* host, void* stream) {
  const bool lasts = is_pinned(host, bytes);
  count(lasts ? what : (std::string("pageable ") + what).c_str());
  counts["bytes of " + std::string(what)] += bytes;
  if (Capture* capture = capture_on(stream); capture && !lasts) return capture->broken = capture_unsupported;
  return submit(stream, [=] { return __builtin_memcpy(to, from, bytes), success; });
}

}  // namespace driver
