// tcgen05.ld and tcgen05.st: a warp moves columns of its 32 lanes between tensor memory and registers.
//
// In the shape .32x32b, a register of a lane is a word of that lane. In .16x256b, 16 lanes are the rows of matrices of 8
// columns, which threads hold like the sums of mma.sync. At the latest both take place when the warp waits for them.
#pragma once
#include "shared_operand.h"
#include "tensor_memory.h"

namespace emulator {

struct TransferShape {
  int lanes;  // 32 or 16

  int columns(int registers) const { return lanes == warp_size ? registers : registers * 2; }
  int lane(int thread, int i) const { return lanes == warp_size ? thread : thread / 4 + i / 2 % 2 * 8; }
  int column(int thread, int i) const { return lanes == warp_size ? i : i / 4 * 8 + thread % 4 * 2 + i % 2; }
};

// Of all lanes of a warp.
struct TensorTransfer {
  bool loads;
  TransferShape shape;
  int first_lane, registers;
  int warp;
  TensorRegion region;
  std::array<uint32_t*, warp_size> loaded;               // registers, one behind the other
  std::array<std::vector<uint32_t>, warp_size> stored;  // their values
};

void transfer_tensor_memory(bool loads, int lanes, uint32_t address, int registers, uint32_t* loaded,
                            const uint32_t* stored);

template <int lanes, size_t count, class Register>
void load_tensor_memory(std::array<Register*, count> registers, uint32_t address) {
  static_assert(sizeof(Register) == 4);
  auto* first = reinterpret_cast<uint32_t*>(first_of(registers, "tcgen05.ld"));
  transfer_tensor_memory(true, lanes, address, int(count), first, nullptr);
}

template <int lanes, size_t count>
void store_tensor_memory(uint32_t address, std::array<uint32_t, count> values) {
  transfer_tensor_memory(false, lanes, address, int(count), nullptr, values.data());
}

// What the warp has loaded or stored is there.
void wait_for_tensor_loads();

void wait_for_tensor_stores();

}  // namespace emulator
