#include "registers.h"

namespace emulator {

uint32_t registers_at_launch(size_t most_threads) {
  return std::min(most_registers, block_registers / uint32_t(most_threads) / register_step * register_step);
}

static void expect_register_count(const char* instruction, uint32_t count) {
  if (count % register_step || count < fewest_registers || count > most_registers)
    fail(std::string(instruction) + ": " + std::to_string(count) + " registers are no multiple of 8 from 24 to 256");
}

void give_registers_back(uint32_t count) {
  expect_register_count("setmaxnreg.dec", count);
  meet_warp_of_group("setmaxnreg.dec", [=] {
    WarpInGroup& warp = warp_in_group();
    if (count > warp.registers)
      fail("setmaxnreg.dec to " + std::to_string(count) + " registers of " + std::to_string(warp.registers));
    block->spare_registers += (warp.registers - count) * warp_size;
    warp.registers = count;
    wake_waiting_on(&block->spare_registers);
  });
}

static bool take_registers(WarpInGroup& warp, uint32_t count) {
  const uint32_t more = (count - warp.registers) * warp_size;
  if (more > block->spare_registers) return false;
  block->spare_registers -= more;
  warp.registers = count;
  return true;
}

void take_more_registers(uint32_t count) {
  expect_register_count("setmaxnreg.inc", count);
  meet_warp_of_group("setmaxnreg.inc", [=] {
    const uint32_t registers = warp_in_group().registers;
    if (count < registers)
      fail("setmaxnreg.inc to " + std::to_string(count) + " registers of " + std::to_string(registers));
  });
  while (!take_registers(warp_in_group(), count))
    wait(State::waiting, "setmaxnreg.inc, for registers that nobody gives back", &block->spare_registers);
}

}  // namespace emulator
