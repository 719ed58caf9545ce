#include "hazards.h"

namespace emulator {

[[noreturn]] static void report_hazard(const char* instruction, size_t offset, const char* what) {
  fail(std::string(instruction) + ": byte " + std::to_string(offset) + " of shared memory " + what);
}

static void expect_none(const std::vector<unsigned char>& states, size_t offset, size_t bytes, const char* instruction,
                        const char* what) {
  const unsigned char* state = &states[offset];
  for (size_t i = 0; i < bytes; ++i)
    if (state[i]) report_hazard(instruction, offset + i, what);
}

void expect_overwritable(size_t offset, size_t bytes, const char* instruction) {
  const SharedMemory& shared = block->shared;
  expect_none(shared.in_use, offset, bytes, instruction, "is still read by a product or store that is under way");
  expect_none(shared.arriving, offset, bytes, instruction, "is the target of a copy that is under way");
}

void begin_arriving(size_t offset, size_t bytes, const char* instruction) {
  expect_overwritable(offset, bytes, instruction);
  expect_unread(*thread, offset, bytes);
  memset(&block->shared.arriving[offset], 1, bytes);
}

void expect_arrived(size_t offset, size_t bytes, const char* instruction) {
  expect_none(block->shared.arriving, offset, bytes, instruction, "is read while a copy to it is under way");
}

void begin_use(size_t offset, size_t bytes, const char* instruction) {
  expect_arrived(offset, bytes, instruction);
  note_read(*thread, offset, bytes);
  for (size_t i = offset; i < offset + bytes; ++i) ++block->shared.in_use[i];
}

void end_use(size_t offset, size_t bytes) {
  note_read(*thread, offset, bytes);
  end_use_by_proxy(offset, bytes);
}

void end_use_by_proxy(size_t offset, size_t bytes) {
  for (size_t i = offset; i < offset + bytes; ++i) --block->shared.in_use[i];
}

void note_written(Thread& owner, size_t offset, size_t bytes) {
  memset(&block->shared.unfenced[offset], 1, bytes);
  owner.copies.unfenced.push_back({offset, bytes});
  note_write(owner, offset, bytes);
}

void note_written_by_proxy(size_t offset, size_t bytes) {
  memset(&block->shared.unfenced[offset], 0, bytes);
  forget(offset, bytes);
}

void publish_writes() {
  for (const Written& written : thread->copies.unfenced)
    memset(&block->shared.unfenced[written.offset], 0, written.bytes);
  thread->copies.unfenced.clear();
  ++thread->fences;
}

// That the thread which wrote a byte last has passed a fence since then.
static bool is_fenced(const ByteHistory& byte) {
  return !byte.write.time || byte.fences < block->cluster->thread(byte.write.thread).fences;
}

void expect_fenced(size_t offset, size_t bytes, const char* instruction) {
  constexpr const char* what = "is read, which a thread wrote without passing fence.proxy.async";
  expect_none(block->shared.unfenced, offset, bytes, instruction, what);
  if (!watched) return;
  for (size_t i = offset; i < offset + bytes; ++i)
    if (!is_fenced(block->history[i])) report_hazard(instruction, i, what);
}

}  // namespace emulator
