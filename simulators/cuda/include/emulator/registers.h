// setmaxnreg: warp groups give registers back to their block, and take more from it.
//
// A thread starts with as many as there are for each of the most threads that the kernel may be launched with. A group
// that asks for more than are there waits until others give some back.
#pragma once
#include "warp_group.h"

namespace emulator {

constexpr uint32_t block_registers = 65536;
constexpr uint32_t register_step = 8, fewest_registers = 24, most_registers = 256;

inline uint32_t registers_at_launch(size_t most_threads) {
  return std::min(most_registers, block_registers / uint32_t(most_threads) / register_step * register_step);
}

inline void expect_register_count(const char* instruction, uint32_t count) {
  if (count % register_step || count < fewest_registers || count > most_registers)
    fail(std::string(instruction) + ": " + std::to_string(count) + " registers are no multiple of 8 from 24 to 256");
}

inline void give_registers_back(uint32_t count) {
  expect_register_count("setmaxnreg.dec", count);
  meet_group("setmaxnreg.dec", [=](WarpGroup& group) {
    if (count > group.registers)
      fail("setmaxnreg.dec to " + std::to_string(count) + " registers of " + std::to_string(group.registers));
    block->spare_registers += (group.registers - count) * group_threads;
    group.registers = count;
    wake_waiting_on(&block->spare_registers);
  });
}

inline bool take_registers(WarpGroup& group, uint32_t count) {
  const uint32_t more = (count - group.registers) * group_threads;
  if (more > block->spare_registers) return false;
  block->spare_registers -= more;
  group.registers = count;
  return true;
}

inline void take_more_registers(uint32_t count) {
  expect_register_count("setmaxnreg.inc", count);
  meet_group("setmaxnreg.inc", [=](WarpGroup& group) {
    if (count < group.registers)
      fail("setmaxnreg.inc to " + std::to_string(count) + " registers of " + std::to_string(group.registers));
  });
  WarpGroup& group = warp_group();
  while (!take_registers(group, count))
    wait(State::waiting, "setmaxnreg.inc, for registers that nobody gives back", &block->spare_registers);
}

}  // namespace emulator
