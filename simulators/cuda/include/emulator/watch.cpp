// Sees every load and store of a kernel to shared memory and to watched arrays: the compiler's option for ThreadSanitizer
// has it call these functions before each access, and they stand in for ThreadSanitizer's own.
#include "call.h"
#include "hazards.h"
#include "watched_arrays.h"

#ifdef EMULATOR_WATCH
namespace emulator {

// Where an access begins in shared memory as threads see it; the emulator itself goes by another address.
EMULATOR_UNWATCHED bool is_shared(const void* address, size_t& offset) {
  offset = size_t(static_cast<const unsigned char*>(address) - block->shared.base);
  return offset < block->shared.bytes;
}

EMULATOR_UNWATCHED void watch_read(const void* address, size_t bytes) {
  size_t offset;
  if (!thread) return;
  if (!is_shared(address, offset)) return note_global(address, bytes, note_block_reads);
  bytes = bytes < block->shared.bytes - offset ? bytes : block->shared.bytes - offset;
  expect_arrived(offset, bytes, "a load");
  note_read(*thread, offset, bytes);
}

EMULATOR_UNWATCHED void watch_write(const void* address, size_t bytes) {
  size_t offset;
  if (!thread) return;
  if (!is_shared(address, offset)) return note_global(address, bytes, note_block_writes);
  bytes = bytes < block->shared.bytes - offset ? bytes : block->shared.bytes - offset;
  expect_overwritable(offset, bytes, "a store");
  note_write(*thread, offset, bytes);
}

}  // namespace emulator

// For accesses of 1 to 16 bytes, aligned or not.
#define EMULATOR_WATCH_BYTES(kind, bytes)                                               \
  EMULATOR_UNWATCHED void __tsan_##kind##bytes(void* address) {                         \
    emulator::watch_##kind(address, bytes);                                             \
  }                                                                                     \
  EMULATOR_UNWATCHED void __tsan_unaligned_##kind##bytes(void* address) {               \
    emulator::watch_##kind(address, bytes);                                             \
  }
#define EMULATOR_WATCH_KIND(kind)                                                       \
  EMULATOR_WATCH_BYTES(kind, 1)                                                         \
  EMULATOR_WATCH_BYTES(kind, 2)                                                         \
  EMULATOR_WATCH_BYTES(kind, 4)                                                         \
  EMULATOR_WATCH_BYTES(kind, 8)                                                         \
  EMULATOR_WATCH_BYTES(kind, 16)                                                        \
  EMULATOR_UNWATCHED void __tsan_##kind##_range(void* address, size_t bytes) {          \
    emulator::watch_##kind(address, bytes);                                             \
  }

extern "C" {
EMULATOR_WATCH_KIND(read)
EMULATOR_WATCH_KIND(write)
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Of the flags that say whether static variables are initialised.
EMULATOR_UNWATCHED int8_t __tsan_atomic8_load(const volatile int8_t* address, int) { return *address; }
}

// Has the given arrays watched from now on: address and bytes of each.
extern "C" __attribute__((visibility("default"))) int32_t __tvm_ffi_watch_arrays(
    void*, const TVMFFIAny* values, int32_t count, TVMFFIAny* result) {
  *result = TVMFFIAny{};
  return emulator::call("watch_arrays", [=] {
    emulator::watched_arrays.clear();
    for (int32_t i = 0; i < count; i += 2) {
      auto begin = static_cast<const unsigned char*>(emulator::address(values[i]));
      emulator::watched_arrays.push_back({begin, emulator::number<size_t>(values[i + 1]), {}, {}});
    }
  });
}
#endif
