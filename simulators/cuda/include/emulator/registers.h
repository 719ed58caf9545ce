// setmaxnreg: the warps of a group give registers back to their block, and take more from it.
//
// A thread starts with as many as there are for each of the most threads that the kernel may be launched with. A warp
// that asks for more than are there waits until others give some back.
#pragma once
#include "warp_group.h"

namespace emulator {

constexpr uint32_t block_registers = 65536;
constexpr uint32_t register_step = 8, fewest_registers = 24, most_registers = 256;

uint32_t registers_at_launch(size_t most_threads);

void give_registers_back(uint32_t count);

void take_more_registers(uint32_t count);

}  // namespace emulator
