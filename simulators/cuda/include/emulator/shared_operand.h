// Operands of products that lie in shared memory (wgmma, tcgen05.mma): where each of their elements is.
#pragma once
#include "matrix.h"
#include "tensor_map.h"

namespace emulator {

constexpr int most_columns = 256;  // of a product

struct OperandLayout {
  const char* instruction;  // for messages
  uint32_t start, leading_bytes, stride_bytes;
  uint32_t swizzle;  // as in a tensor map

  // The address of byte `byte` along the depth in row `row` (of A) or column `row` (of B), both depth-major.
  uint32_t address(int row, int byte) const {
    const uint32_t eight = start + uint32_t(row / 8) * stride_bytes;
    if (swizzle == 0) return eight + uint32_t(byte / 16) * leading_bytes + uint32_t(row % 8 * 16 + byte % 16);
    const uint32_t row_bytes = 16u << swizzle;
    return swizzled(eight + uint32_t(row % 8) * row_bytes + uint32_t(byte), swizzle);
  }

  // The address of byte `byte` along the columns in row `k` of the depth, of a B whose columns follow one another.
  uint32_t transposed_address(int k, int byte) const {
    if (swizzle == 0)
      fail(std::string(instruction) + ": the emulator has no model of a transposed operand that is not swizzled");
    const uint32_t row_bytes = 16u << swizzle;
    const uint32_t eight = start + uint32_t(k / 8) * stride_bytes + uint32_t(byte) / row_bytes * leading_bytes;
    return swizzled(eight + uint32_t(k % 8) * row_bytes + uint32_t(byte) % row_bytes, swizzle);
  }
};

template <class Format, int depth>
EMULATOR_UNWATCHED void read_operand(const OperandLayout& layout, int rows, typename Format::Sum* values,
                                     int row_stride, int depth_stride) {
  constexpr int width = Format::per_register;
  for (int row = 0; row < rows; ++row)
    for (int word = 0; word < depth / width; ++word) {
      uint32_t bits;
      memcpy(&bits, from_window(layout.address(row, word * 4), 4, layout.instruction), 4);
      for (int i = 0; i < width; ++i)
        values[row * row_stride + (word * width + i) * depth_stride] = Format::element(bits, i);
    }
}

template <class Format, int depth>
EMULATOR_UNWATCHED void read_transposed(const OperandLayout& layout, int columns, typename Format::Sum* values,
                                        int depth_stride) {
  constexpr int bytes = 4 / Format::per_register;
  for (int k = 0; k < depth; ++k)
    for (int column = 0; column < columns; ++column) {
      const uint32_t address = layout.transposed_address(k, column * bytes);
      const unsigned char* element = from_window(address, bytes, layout.instruction);
      uint32_t bits = 0;
      memcpy(&bits, element, bytes);
      values[column + k * depth_stride] = Format::element(bits, 0);
    }
}

// Calls `act` with the place of each 16 bytes of an operand: `rows` rows of `row_bytes`, a multiple of 16.
template <class Act>
void for_each_chunk(const OperandLayout& layout, int rows, int row_bytes, Act act) {
  for (int row = 0; row < rows; ++row)
    for (int byte = 0; byte < row_bytes; byte += 16)
      act(offset_of(from_window(layout.address(row, byte), 16, layout.instruction)));
}

// Registers that an instruction writes later: in one array, so that they are there when it does.
template <class Register, size_t count>
Register* first_of(const std::array<Register*, count>& registers, const char* instruction) {
  for (size_t i = 0; i < count; ++i)
    if (registers[i] != registers[0] + i)
      fail(std::string(instruction) + ": the emulator wants its registers one behind the other in one array");
  return registers[0];
}

}  // namespace emulator
