#include "block_scaled.h"

namespace emulator {

void expect_selectors(const ScaleOperand& first, const ScaleOperand& other, int chunks, int lanes) {
  if (other.byte < 0 || other.byte + chunks > 4 || other.byte % chunks || other.lane < 0 || other.lane >= lanes)
    fail("mma.sync: scales in byte " + std::to_string(other.byte) + " of lane " + std::to_string(other.lane) +
         "; expected a multiple of " + std::to_string(chunks) + " up to " + std::to_string(4 - chunks) +
         ", and a lane or pair below " + std::to_string(lanes));
  if (other.byte != first.byte || other.lane != first.lane) fail("mma.sync: lanes select scales in different ways");
}

}  // namespace emulator
