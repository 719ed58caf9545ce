// Two ways to shared memory: threads write by the generic proxy, TMA and wgmma read by the asynchronous one.
//
// What a thread wrote is not visible to the other proxy before this thread has passed fence.proxy.async. Copies by
// cp.async are followed byte by byte; plain stores are not seen here.
#pragma once
#include "shared_window.h"

namespace emulator {

inline void note_written(Thread& owner, size_t offset, size_t bytes) {
  memset(&block->shared.unfenced[offset], 1, bytes);
  owner.copies.unfenced.push_back({offset, bytes});
}

inline void fence_for_asynchronous_proxy() {
  for (const Written& written : thread->copies.unfenced) memset(&block->shared.unfenced[written.offset], 0, written.bytes);
  thread->copies.unfenced.clear();
}

// The other proxy has overwritten these bytes.
inline void note_written_by_copy(size_t offset, size_t bytes) { memset(&block->shared.unfenced[offset], 0, bytes); }

inline void expect_fenced(size_t offset, size_t bytes, const char* instruction) {
  const unsigned char* unfenced = &block->shared.unfenced[offset];
  for (size_t i = 0; i < bytes; ++i)
    if (unfenced[i])
      fail(std::string(instruction) + " reads byte " + std::to_string(offset + i) +
           " of shared memory, which a thread wrote and did not pass fence.proxy.async");
}

}  // namespace emulator
