// cp.async of one thread: copies to shared memory that are complete when wait_group says so.
#pragma once
#include <cstdint>
#include <vector>

namespace emulator {

struct Copy {
  uint32_t destination;  // in the window of shared memory
  const void* source;
  uint32_t bytes, read_bytes;  // the rest is filled with zeros
  int group;
};

struct Written {
  size_t offset, bytes;
};

struct CopyGroups {
  std::vector<Copy> pending;
  int group = 0;                  // the one that is being filled
  std::vector<Written> unfenced;  // what this thread wrote and did not yet fence for TMA and wgmma
};

}  // namespace emulator
