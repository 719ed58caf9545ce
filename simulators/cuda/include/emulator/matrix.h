// Tensor cores of a warp: ldmatrix, stmatrix and mma, with the fragments' layouts of the PTX manual.
//
// A lane belongs to group `lane / 4` and has place `lane % 4` in it. A register holds `per_register` neighbouring
// elements along the depth; a row of A or a column of B is spread over the four lanes of a group.
#pragma once
#include <array>

#include "float_bits.h"
#include "hazards.h"
#include "warp.h"

namespace emulator {

// How 32-bit registers hold the elements of a product, and what sums are.
struct Float16 {
  using Sum = float;
  static constexpr int per_register = 2;
  static Sum element(uint32_t bits, int i) { return half_to_float(uint16_t(bits >> (16 * i))); }
};
struct BFloat16 {
  using Sum = float;
  static constexpr int per_register = 2;
  static Sum element(uint32_t bits, int i) { return bfloat16_to_float(uint16_t(bits >> (16 * i))); }
};
struct TensorFloat32 {
  using Sum = float;
  static constexpr int per_register = 1;
  static Sum element(uint32_t bits, int) { return truncated_to_tf32(bits); }
};
struct Float8E4M3 {  // sums keep all bits of a float; how many the hardware keeps, no manual says
  using Sum = float;
  static constexpr int per_register = 4;
  static Sum element(uint32_t bits, int i) { return e4m3_to_float(uint8_t(bits >> (8 * i))); }
};
struct Int8 {
  using Sum = int32_t;
  static constexpr int per_register = 4;
  static Sum element(uint32_t bits, int i) { return int8_t(bits >> (8 * i)); }
};
struct UInt8 {
  using Sum = int32_t;
  static constexpr int per_register = 4;
  static Sum element(uint32_t bits, int i) { return uint8_t(bits >> (8 * i)); }
};

template <class Format, int depth>
struct ProductArgument {
  static constexpr int b_registers = depth / (4 * Format::per_register);
  std::array<typename Format::Sum*, 4> result;
  std::array<uint32_t, 2 * b_registers> a;
  std::array<uint32_t, b_registers> b;
  std::array<typename Format::Sum, 4> c;
};

// The elements that a lane's registers hold of A, 16 x depth.
template <class Format, int depth, size_t registers>
void spread_a(const std::array<uint32_t, registers>& words, int lane, typename Format::Sum (&a)[16][depth]) {
  constexpr int width = Format::per_register;
  for (int r = 0; r < int(registers); ++r)
    for (int i = 0; i < width; ++i)
      a[lane / 4 + r % 2 * 8][(r / 2 * 4 + lane % 4) * width + i] = Format::element(words[size_t(r)], i);
}

// The elements that a lane's registers hold of B, depth x 8.
template <class Format, int depth, size_t registers>
void spread_b(const std::array<uint32_t, registers>& words, int lane, typename Format::Sum (&b)[depth][8]) {
  constexpr int width = Format::per_register;
  for (int r = 0; r < int(registers); ++r)
    for (int i = 0; i < width; ++i) b[(r * 4 + lane % 4) * width + i][lane / 4] = Format::element(words[size_t(r)], i);
}

// The sum, one of 16 x 8, that a lane's register holds.
template <class Sum>
Sum& sum_of(Sum (&sums)[16][8], int lane, int r) {
  return sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
}

// D = A * B + C for A of 16 x depth and B of depth x 8.
template <class Format, int depth>
EMULATOR_UNWATCHED void multiply_fragments(Meeting& meeting) {
  using Argument = ProductArgument<Format, depth>;
  expect_whole_warp(meeting);
  typename Format::Sum a[16][depth], b[depth][8], d[16][8];
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto& mine = argument_of<Argument>(meeting, lane);
    spread_a<Format, depth>(mine.a, lane, a);
    spread_b<Format, depth>(mine.b, lane, b);
    for (int r = 0; r < 4; ++r) sum_of(d, lane, r) = mine.c[size_t(r)];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < warp_size; ++lane)
    for (int r = 0; r < 4; ++r) *argument_of<Argument>(meeting, lane).result[size_t(r)] = sum_of(d, lane, r);
}

template <class Format, int depth>
void mma(ProductArgument<Format, depth> argument) {
  meet("mma.sync", all_lanes, argument, multiply_fragments<Format, depth>);
}

// Up to four tiles of 8 x 8 elements of 16 bits. Lane 8 * tile + row gives the address of that row.
template <int tiles>
struct TileArgument {
  std::array<uint32_t*, tiles> registers;
  uint32_t address;
};

unsigned char* tile_row(uint32_t address, const char* instruction);

inline Thread& thread_of(int lane) { return block->threads[size_t(thread->warp) * warp_size + size_t(lane)]; }

void read_row(uint32_t address, const Thread& reader, uint16_t (&row)[8]);

void write_row(uint32_t address, const Thread& writer, const uint16_t (&row)[8]);

// Row and column of the elements that a lane's register holds; transposed tiles swap them.
template <bool transposed>
uint16_t& tile_element(uint16_t (&tile)[8][8], int lane, int i) {
  const int row = lane / 4, column = lane % 4 * 2 + i;
  return transposed ? tile[column][row] : tile[row][column];
}

template <int tiles, bool transposed>
void load_tiles(Meeting& meeting) {
  expect_whole_warp(meeting);
  using Argument = TileArgument<tiles>;
  for (int t = 0; t < tiles; ++t) {
    uint16_t tile[8][8];
    for (int row = 0; row < 8; ++row)
      read_row(argument_of<Argument>(meeting, t * 8 + row).address, thread_of(t * 8 + row), tile[row]);
    for (int lane = 0; lane < warp_size; ++lane)
      *argument_of<Argument>(meeting, lane).registers[size_t(t)] =
          uint32_t(tile_element<transposed>(tile, lane, 0)) | uint32_t(tile_element<transposed>(tile, lane, 1)) << 16;
  }
}

template <int tiles, bool transposed>
void ldmatrix(std::array<uint32_t*, tiles> registers, uint32_t address) {
  TileArgument<tiles> argument{registers, address};
  meet("ldmatrix", all_lanes, argument, load_tiles<tiles, transposed>);
}

template <int tiles, bool transposed>
void store_tiles(Meeting& meeting) {
  expect_whole_warp(meeting);
  using Argument = TileArgument<tiles>;
  for (int t = 0; t < tiles; ++t) {
    uint16_t tile[8][8];
    for (int lane = 0; lane < warp_size; ++lane)
      for (int i = 0; i < 2; ++i)
        tile_element<transposed>(tile, lane, i) =
            uint16_t(*argument_of<Argument>(meeting, lane).registers[size_t(t)] >> (16 * i));
    for (int row = 0; row < 8; ++row)
      write_row(argument_of<Argument>(meeting, t * 8 + row).address, thread_of(t * 8 + row), tile[row]);
  }
}

template <int tiles, bool transposed>
void stmatrix(uint32_t address, std::array<uint32_t, tiles> values) {
  TileArgument<tiles> argument{{}, address};
  for (int t = 0; t < tiles; ++t) argument.registers[size_t(t)] = &values[size_t(t)];
  meet("stmatrix", all_lanes, argument, store_tiles<tiles, transposed>);
}

}  // namespace emulator
