// Bitwise instructions that C++ has no operator for.
#pragma once
#include <cstdint>

namespace emulator {

// lop3: bit n of `table` is the result for the three bits of n.
inline uint32_t logic_of_three(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int n = 0; n < 8; ++n)
    if (table >> n & 1) result |= (n & 4 ? a : ~a) & (n & 2 ? b : ~b) & (n & 1 ? c : ~c);
  return result;
}

}  // namespace emulator
