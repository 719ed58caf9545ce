// Products of a warp whose operands have a scale for every 16 or 32 elements: mma with .block_scale.
//
// A register of scales belongs to a row of A in one of two lanes of a group, and to a column of B in one of its four;
// selectors say which of the lanes are read, and the first of the bytes.
#pragma once
#include "matrix.h"

namespace emulator {

struct Float4E2M1 {
  using Sum = float;
  static constexpr int per_register = 8;
  static Sum element(uint32_t bits, int i) { return e2m1_to_float(bits >> (4 * i) & 15); }
};
struct Float4E2M1InByte {  // the four bits in the middle of a byte
  using Sum = float;
  static constexpr int per_register = 4;
  static Sum element(uint32_t bits, int i) {
    const uint32_t byte = bits >> (8 * i) & 0xff;
    if (byte & 0xc3) fail("byte " + hexadecimal(byte) + " of e2m1 has bits outside of the middle four");
    return e2m1_to_float(byte >> 2);
  }
};
struct ScaleUE8M0 {
  static float value(uint8_t byte) { return ue8m0_to_float(byte); }
};
struct ScaleUE4M3 {
  static float value(uint8_t byte) {
    if (byte & 0x80) fail("scale " + hexadecimal(byte) + " of ue4m3 has a sign");
    return e4m3_to_float(byte);
  }
};

// `byte`: the first byte of the register; `lane`: the lane of a group, or the pair of lanes.
struct ScaleOperand {
  uint32_t bytes;
  int byte;
  int lane;
};

template <class A, class B, int depth>
struct BlockScaledArgument {
  std::array<float*, 4> result;
  std::array<uint32_t, depth / (2 * A::per_register)> a;
  std::array<uint32_t, depth / (4 * B::per_register)> b;
  std::array<float, 4> c;
  ScaleOperand scale_a, scale_b;
};

void expect_selectors(const ScaleOperand& first, const ScaleOperand& other, int chunks, int lanes);

// D = (A * scales) * (B * scales) + C. Products of a chunk are added exactly, in double, and scaled; chunks are added to
// a float, in order. How many bits the hardware keeps, no manual says.
template <class A, class B, class Scale, int depth, int chunks>
EMULATOR_UNWATCHED void multiply_scaled(Meeting& meeting) {
  using Argument = BlockScaledArgument<A, B, depth>;
  expect_whole_warp(meeting);
  float a[16][depth], b[depth][8], d[16][8];
  const auto& first = argument_of<Argument>(meeting, 0);
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto& mine = argument_of<Argument>(meeting, lane);
    expect_selectors(first.scale_a, mine.scale_a, chunks, 2);
    expect_selectors(first.scale_b, mine.scale_b, chunks, 4);
    spread_a<A, depth>(mine.a, lane, a);
    spread_b<B, depth>(mine.b, lane, b);
    for (int r = 0; r < 4; ++r) sum_of(d, lane, r) = mine.c[size_t(r)];
  }
  const auto scale = [](const ScaleOperand& operand, int chunk) {
    return double(Scale::value(uint8_t(operand.bytes >> (8 * (operand.byte + chunk)))));
  };
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int of_row = row % 8 * 4 + first.scale_a.lane * 2 + row / 8, of_column = column * 4 + first.scale_b.lane;
        double sum = 0;
        for (int k = chunk * depth / chunks; k < (chunk + 1) * depth / chunks; ++k)
          sum += double(a[row][k]) * double(b[k][column]);
        d[row][column] += float(sum * scale(argument_of<Argument>(meeting, of_row).scale_a, chunk) *
                                scale(argument_of<Argument>(meeting, of_column).scale_b, chunk));
      }
  for (int lane = 0; lane < warp_size; ++lane)
    for (int r = 0; r < 4; ++r) *argument_of<Argument>(meeting, lane).result[size_t(r)] = sum_of(d, lane, r);
}

template <class A, class B, class Scale, int depth, int chunks>
void mma_scaled(BlockScaledArgument<A, B, depth> argument) {
  meet("mma.sync", all_lanes, argument, multiply_scaled<A, B, Scale, depth, chunks>);
}

}  // namespace emulator
