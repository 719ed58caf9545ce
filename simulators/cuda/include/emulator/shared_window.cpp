#include "shared_window.h"

namespace emulator {

uint32_t to_window(const void* pointer) {
  const SharedMemory& shared = block->shared;
  const auto byte = static_cast<const unsigned char*>(pointer);
  if (byte < shared.pages || byte >= shared.pages + shared.mapped)
    fail("a pointer that is not into shared memory was converted to a shared address");
  return uint32_t(byte - shared.base) + shared.window;  // also of bytes outside, which no instruction may touch
}

unsigned char* from_window(uint32_t address, size_t bytes, const char* instruction) {
  const int64_t offset = int32_t(address - block->shared.window), end = offset + int64_t(bytes);
  if (offset < 0 || end > int64_t(block->shared.bytes))
    fail(std::string(instruction) + ": bytes " + std::to_string(offset) + " to " + std::to_string(end) +
         " of shared memory, which has " + std::to_string(block->shared.bytes));
  return block->shared.own + offset;
}

void expect_aligned(uint32_t address, uint32_t alignment, const char* instruction) {
  if (address % alignment)
    fail(std::string(instruction) + ": shared address " + std::to_string(address - window_start) +
         " is no multiple of " + std::to_string(alignment));
}

}  // namespace emulator
