// Addresses in the 32-bit window of shared memory, as PTX instructions take them.
#pragma once
#include "scheduler.h"

namespace emulator {

inline uint32_t to_window(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - block->shared.base;
  if (offset < 0 || size_t(offset) > block->shared.bytes)
    fail("a pointer that is not into shared memory was converted to a shared address");
  return uint32_t(offset) + window_start;
}

// The bytes at an address of the window; fails where they are not all inside.
inline unsigned char* from_window(uint32_t address, size_t bytes, const char* instruction) {
  const uint64_t offset = uint64_t(address) - window_start;
  if (address < window_start || offset + bytes > block->shared.bytes)
    fail(std::string(instruction) + ": bytes " + std::to_string(int64_t(offset)) + " to " +
         std::to_string(int64_t(offset + bytes)) + " of shared memory, which has " +
         std::to_string(block->shared.bytes));
  return block->shared.base + offset;
}

inline void expect_aligned(uint32_t address, uint32_t alignment, const char* instruction) {
  if (address % alignment)
    fail(std::string(instruction) + ": shared address " + std::to_string(address - window_start) +
         " is no multiple of " + std::to_string(alignment));
}

// The static arrays of a kernel, laid out by the compiler in one structure.
template <class Arrays>
Arrays& static_arrays() { return *reinterpret_cast<Arrays*>(block->shared.base); }

inline unsigned char* dynamic_pool() { return block->shared.base + block->shared.pool; }

}  // namespace emulator

inline uint32_t __cvta_generic_to_shared(const void* pointer) { return emulator::to_window(pointer); }
