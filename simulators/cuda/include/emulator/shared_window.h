// Addresses in the 32-bit window of shared memory, as PTX instructions take them.
#pragma once
#include "scheduler.h"

namespace emulator {

uint32_t to_window(const void* pointer);

// The bytes at an address of the window; fails where they are not all inside.
unsigned char* from_window(uint32_t address, size_t bytes, const char* instruction);

void expect_aligned(uint32_t address, uint32_t alignment, const char* instruction);

// The static arrays of a kernel, laid out by the compiler in one structure.
template <class Arrays>
Arrays& static_arrays() { return *reinterpret_cast<Arrays*>(block->shared.base); }

inline unsigned char* dynamic_pool() { return block->shared.base + block->shared.pool; }

}  // namespace emulator

inline uint32_t __cvta_generic_to_shared(const void* pointer) { return emulator::to_window(pointer); }
