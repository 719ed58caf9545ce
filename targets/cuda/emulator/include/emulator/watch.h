// Sees every load and store of a kernel to shared memory: the compiler's option for ThreadSanitizer has it call these
// functions before each access, and they stand in for ThreadSanitizer's own.
#pragma once
#include "hazards.h"

#ifdef EMULATOR_WATCH
namespace emulator {

// Where an access begins in shared memory as threads see it; the emulator itself goes by another address.
EMULATOR_UNWATCHED inline bool is_shared(const void* address, size_t& offset) {
  if (!thread) return false;
  offset = size_t(static_cast<const unsigned char*>(address) - block->shared.base);
  return offset < block->shared.bytes;
}

EMULATOR_UNWATCHED inline void watch_read(const void* address, size_t bytes) {
  size_t offset;
  if (!is_shared(address, offset)) return;
  bytes = bytes < block->shared.bytes - offset ? bytes : block->shared.bytes - offset;
  expect_arrived(offset, bytes, "a load");
  note_read(*thread, offset, bytes);
}

EMULATOR_UNWATCHED inline void watch_write(const void* address, size_t bytes) {
  size_t offset;
  if (!is_shared(address, offset)) return;
  bytes = bytes < block->shared.bytes - offset ? bytes : block->shared.bytes - offset;
  expect_overwritable(offset, bytes, "a store");
  note_write(*thread, offset, bytes);
}

}  // namespace emulator

#define EMULATOR_WATCHED(bytes)                                                                \
  EMULATOR_UNWATCHED void __tsan_read##bytes(void* address) { emulator::watch_read(address, bytes); }             \
  EMULATOR_UNWATCHED void __tsan_write##bytes(void* address) { emulator::watch_write(address, bytes); }           \
  EMULATOR_UNWATCHED void __tsan_unaligned_read##bytes(void* address) { emulator::watch_read(address, bytes); }   \
  EMULATOR_UNWATCHED void __tsan_unaligned_write##bytes(void* address) { emulator::watch_write(address, bytes); }
extern "C" {
EMULATOR_WATCHED(1)
EMULATOR_WATCHED(2)
EMULATOR_WATCHED(4)
EMULATOR_WATCHED(8)
EMULATOR_WATCHED(16)
EMULATOR_UNWATCHED void __tsan_read_range(void* address, size_t bytes) { emulator::watch_read(address, bytes); }
EMULATOR_UNWATCHED void __tsan_write_range(void* address, size_t bytes) { emulator::watch_write(address, bytes); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
EMULATOR_UNWATCHED int8_t __tsan_atomic8_load(const volatile int8_t* address, int) { return *address; }  // of guards of static variables
}
#undef EMULATOR_WATCHED
#endif
