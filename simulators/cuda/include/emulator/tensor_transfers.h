// tcgen05.ld and tcgen05.st: a warp moves columns of its 32 lanes between tensor memory and registers (.32x32b).
//
// A register of a lane is a word of that lane. At the latest both take place when the warp waits for them.
#pragma once
#include "shared_operand.h"
#include "tensor_memory.h"

namespace emulator {

// Of all lanes of a warp.
struct TensorTransfer {
  bool loads;
  int warp;
  TensorRegion region;
  std::array<uint32_t*, warp_size> loaded;               // registers, one behind the other
  std::array<std::vector<uint32_t>, warp_size> stored;  // their values
};

void transfer_tensor_memory(bool loads, uint32_t address, int columns, uint32_t* loaded, const uint32_t* stored);

template <size_t columns, class Register>
void load_tensor_memory(std::array<Register*, columns> registers, uint32_t address) {
  static_assert(sizeof(Register) == 4);
  auto* first = reinterpret_cast<uint32_t*>(first_of(registers, "tcgen05.ld"));
  transfer_tensor_memory(true, address, int(columns), first, nullptr);
}

template <size_t columns>
void store_tensor_memory(uint32_t address, std::array<uint32_t, columns> values) {
  transfer_tensor_memory(false, address, int(columns), nullptr, values.data());
}

// What the warp has loaded or stored is there.
void wait_for_tensor_loads();

void wait_for_tensor_stores();

}  // namespace emulator
