// What a CUtensorMap holds here: a tensor in global memory and the box of it that one copy moves.
//
// The driver's own layout is secret; moec.simulators.cuda.tensor_map writes this one.
#pragma once
#include <cstdint>

struct alignas(64) CUtensorMap {
  uint64_t address;
  uint32_t rank, element_bytes;
  uint32_t swizzle;    // 0: none, 1: 32 bytes, 2: 64 bytes, 3: 128 bytes
  uint32_t reserved;
  uint64_t extents[5];  // in elements, innermost first
  uint64_t strides[4];  // in bytes, of all dimensions but the innermost
  uint32_t box[5];
};
static_assert(sizeof(CUtensorMap) == 128);

namespace emulator {

// The swizzled patterns exchange 16-byte chunks within a row by the row's number, both read from the address.
inline uint32_t swizzled(uint32_t address, uint32_t mode) {
  constexpr uint32_t chunks[] = {0x00, 0x10, 0x30, 0x70};
  return address ^ (address >> 3 & chunks[mode]);
}

}  // namespace emulator
