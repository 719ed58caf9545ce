// What state each byte of shared memory is in while asynchronous operations are under way.
//
// A byte is arriving from when a copy to it was issued until a wait says that it is there: nobody may read it or copy
// to it. A byte is in use from when an operation that reads it was issued until a wait: nobody may copy to it. What a
// thread wrote is not visible to TMA and wgmma before this thread has passed fence.proxy.async. These rules do not
// depend on when operations complete. Plain loads and stores are held to them where they are watched.
#pragma once
#include "races.h"
#include "shared_window.h"

namespace emulator {

inline size_t offset_of(const unsigned char* shared) { return size_t(shared - block->shared.own); }

void expect_overwritable(size_t offset, size_t bytes, const char* instruction);

void begin_arriving(size_t offset, size_t bytes, const char* instruction);

inline void end_arriving(size_t offset, size_t bytes) { memset(&block->shared.arriving[offset], 0, bytes); }

void expect_arrived(size_t offset, size_t bytes, const char* instruction);

void begin_use(size_t offset, size_t bytes, const char* instruction);

void end_use(size_t offset, size_t bytes);

// The same where the hardware says so, not the thread that waits for it.
void end_use_by_proxy(size_t offset, size_t bytes);

void note_written(Thread& owner, size_t offset, size_t bytes);

// The asynchronous proxy itself has overwritten these bytes.
void note_written_by_proxy(size_t offset, size_t bytes);

void publish_writes();

void expect_fenced(size_t offset, size_t bytes, const char* instruction);

}  // namespace emulator
