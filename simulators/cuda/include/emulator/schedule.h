// The order in which threads run, where a test asks for one that is hard on a kernel.
#pragma once
#include <cstdint>

namespace emulator {

struct Schedule {
  uint32_t behind = 0;  // warps of each block, a bit each, that run only when nothing else can go on
  uint32_t seed = 0;    // of the order of warps and of what completes; 0: in turn, and as late as can be
};

inline Schedule schedule;  // changed between launches only

// Numbers that follow from a seed and a block alone (splitmix64).
struct Dice {
  uint64_t state = 0;

  uint32_t below(uint32_t limit) {
    uint64_t mixed = state += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return uint32_t((mixed ^ mixed >> 31) % limit);
  }
};

}  // namespace emulator
