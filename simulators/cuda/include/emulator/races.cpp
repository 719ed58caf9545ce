#include "races.h"

namespace emulator {

std::string in_words(const dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

// The byte and the array it lies in.
static std::string byte_in_words(size_t offset) {
  const SharedMemory& shared = block->shared;
  std::string array = "the dynamic pool";
  for (const RedZone& zone : shared.red_zones)
    if (offset < zone.begin) {
      array = zone.behind;
      break;
    }
  return "byte " + std::to_string(offset) + " of shared memory, in " + array + ",";
}

[[noreturn]] void report_race(const Thread& t, const char* does, size_t offset, const Access& other,
                              const char* did) {
  fail("race: thread " + in_words(t.index) + " " + does + " " + byte_in_words(offset) + " which thread " +
       in_words(t.home->cluster->thread(other.thread).index) + " " + did + ", and no barrier lies between them");
}

bool happened_before(const Access& access, const Thread& t) {
  return !access.time || access.thread == t.number || clock_of(t)[access.thread] >= access.time;
}

// A thread's read stands for another's where it happened after it; where neither slot is free the older one is lost.
static void remember_read(ByteHistory& byte, const Thread& t) {
  const Access now{time_of(t), uint16_t(t.number)};
  for (Access& slot : byte.reads)
    if (happened_before(slot, t)) {
      slot = now;
      return;
    }
  byte.reads[1] = byte.reads[0];
  byte.reads[0] = now;
}

void note_read(const Thread& t, size_t offset, size_t bytes) {
  if (!watched) return;
  for (size_t i = offset; i < offset + bytes; ++i) {
    ByteHistory& byte = block->history[i];
    if (!happened_before(byte.write, t)) report_race(t, "reads", i, byte.write, "wrote");
    remember_read(byte, t);
  }
}

void expect_unread(const Thread& t, size_t offset, size_t bytes) {
  if (!watched) return;
  for (size_t i = offset; i < offset + bytes; ++i) {
    const ByteHistory& byte = block->history[i];
    if (!happened_before(byte.write, t)) report_race(t, "overwrites", i, byte.write, "wrote");
    for (const Access& read : byte.reads)
      if (!happened_before(read, t)) report_race(t, "overwrites", i, read, "read");
  }
}

void note_write(const Thread& t, size_t offset, size_t bytes) {
  if (!watched) return;
  expect_unread(t, offset, bytes);
  for (size_t i = offset; i < offset + bytes; ++i)
    block->history[i] = {{time_of(t), uint16_t(t.number)}, {}, t.fences};
}

void forget(size_t offset, size_t bytes) {
  if (watched) std::fill_n(block->history.begin() + long(offset), bytes, ByteHistory{});
}

}  // namespace emulator
