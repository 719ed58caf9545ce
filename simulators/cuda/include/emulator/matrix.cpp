#include "matrix.h"

namespace emulator {

unsigned char* tile_row(uint32_t address, const char* instruction) {
  expect_aligned(address, 16, instruction);
  return from_window(address, 16, instruction);
}

void read_row(uint32_t address, const Thread& reader, uint16_t (&row)[8]) {
  const unsigned char* source = tile_row(address, "ldmatrix");
  expect_arrived(offset_of(source), sizeof row, "ldmatrix");
  note_read(reader, offset_of(source), sizeof row);
  memcpy(row, source, sizeof row);
}

void write_row(uint32_t address, const Thread& writer, const uint16_t (&row)[8]) {
  unsigned char* target = tile_row(address, "stmatrix");
  expect_overwritable(offset_of(target), sizeof row, "stmatrix");
  note_write(writer, offset_of(target), sizeof row);
  memcpy(target, row, sizeof row);
}

}  // namespace emulator
