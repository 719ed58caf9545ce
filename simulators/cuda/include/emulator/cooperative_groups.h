// The part of cooperative groups that generated code uses: a thread's rank in its block, and waiting for the block.
#pragma once
#include "barriers.h"

namespace cooperative_groups {

struct thread_block {
  unsigned thread_rank() const { return unsigned(emulator::thread->linear); }
  unsigned size() const { return unsigned(emulator::block->threads.size()); }
  void sync() const { __syncthreads(); }
};

inline thread_block this_thread_block() { return {}; }

}  // namespace cooperative_groups
