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

[[noreturn]] inline void report_hazard(const char* instruction, size_t offset, const char* what) {
  fail(std::string(instruction) + ": byte " + std::to_string(offset) + " of shared memory " + what);
}

inline void expect_none(const std::vector<unsigned char>& states, size_t offset, size_t bytes, const char* instruction,
                        const char* what) {
  const unsigned char* state = &states[offset];
  for (size_t i = 0; i < bytes; ++i)
    if (state[i]) report_hazard(instruction, offset + i, what);
}

inline void expect_overwritable(size_t offset, size_t bytes, const char* instruction) {
  const SharedMemory& shared = block->shared;
  expect_none(shared.in_use, offset, bytes, instruction, "is still read by a product or store that is under way");
  expect_none(shared.arriving, offset, bytes, instruction, "is the target of a copy that is under way");
}

inline void begin_arriving(size_t offset, size_t bytes, const char* instruction) {
  expect_overwritable(offset, bytes, instruction);
  expect_unread(*thread, offset, bytes);
  memset(&block->shared.arriving[offset], 1, bytes);
}

inline void end_arriving(size_t offset, size_t bytes) { memset(&block->shared.arriving[offset], 0, bytes); }

inline void expect_arrived(size_t offset, size_t bytes, const char* instruction) {
  expect_none(block->shared.arriving, offset, bytes, instruction, "is read while a copy to it is under way");
}

inline void begin_use(size_t offset, size_t bytes, const char* instruction) {
  expect_arrived(offset, bytes, instruction);
  note_read(*thread, offset, bytes);
  for (size_t i = offset; i < offset + bytes; ++i) ++block->shared.in_use[i];
}

inline void end_use(size_t offset, size_t bytes) {
  note_read(*thread, offset, bytes);
  for (size_t i = offset; i < offset + bytes; ++i) --block->shared.in_use[i];
}

inline void note_written(Thread& owner, size_t offset, size_t bytes) {
  memset(&block->shared.unfenced[offset], 1, bytes);
  owner.copies.unfenced.push_back({offset, bytes});
  note_write(owner, offset, bytes);
}

// The asynchronous proxy itself has overwritten these bytes.
inline void note_written_by_proxy(size_t offset, size_t bytes) {
  memset(&block->shared.unfenced[offset], 0, bytes);
  forget(offset, bytes);
}

inline void publish_writes() {
  for (const Written& written : thread->copies.unfenced)
    memset(&block->shared.unfenced[written.offset], 0, written.bytes);
  thread->copies.unfenced.clear();
  ++thread->fences;
}

// That the thread which wrote a byte last has passed a fence since then.
inline bool is_fenced(const ByteHistory& byte) {
  return !byte.write.time || byte.fences < block->cluster->thread(byte.write.thread).fences;
}

inline void expect_fenced(size_t offset, size_t bytes, const char* instruction) {
  constexpr const char* what = "is read, which a thread wrote without passing fence.proxy.async";
  expect_none(block->shared.unfenced, offset, bytes, instruction, what);
  if (!watched) return;
  for (size_t i = offset; i < offset + bytes; ++i)
    if (!is_fenced(block->history[i])) report_hazard(instruction, i, what);
}

}  // namespace emulator
