// Who read and wrote each byte of the arrays in global memory that are watched, in one launch.
//
// Blocks run in any order, or side by side: what one writes no other may read or write, but by atomic operations.
#pragma once
#include "early_launch.h"
#include "races.h"

namespace emulator {

constexpr uint32_t several_blocks = UINT32_MAX;

struct WatchedArray {
  const unsigned char* begin;
  size_t bytes;
  std::vector<uint32_t> writers, readers;  // of each byte: 0 for nobody, or the block's number and 1
};

inline std::vector<WatchedArray> watched_arrays;  // changed between launches only
// The same as plain pointers: the functions of a vector are watched themselves, and would come back here.
inline WatchedArray *first_watched, *end_of_watched;

inline void forget_blocks() {
  first_watched = watched_arrays.data();
  end_of_watched = first_watched + watched_arrays.size();
  for (WatchedArray& array : watched_arrays) {
    array.writers.assign(array.bytes, 0);
    array.readers.assign(array.bytes, 0);
  }
}

EMULATOR_UNWATCHED inline uint32_t block_number() {
  return uint32_t((size_t(block->index.z) * block->grid.y + block->index.y) * block->grid.x + block->index.x) + 1;
}

[[noreturn]] inline void report_blocks(size_t byte, const char* does, const char* did, uint32_t other) {
  const std::string who = other == several_blocks ? "several blocks" : "block " + std::to_string(other - 1);
  fail(std::string("race: this block ") + does + " byte " + std::to_string(byte) + " of an array in global memory, " +
       "which " + who + " " + did + " in the same launch");
}

// A write is seen by others before it looks for their reads, and a read before it looks for their writes, so that of
// two at the same time one is reported.
EMULATOR_UNWATCHED inline void note_block_writes(WatchedArray& array, size_t byte, uint32_t me) {
  const uint32_t writer = __atomic_exchange_n(&array.writers[byte], me, __ATOMIC_SEQ_CST);
  if (writer && writer != me) report_blocks(byte, "overwrites", "wrote", writer);
  const uint32_t reader = __atomic_load_n(&array.readers[byte], __ATOMIC_SEQ_CST);
  if (reader && reader != me) report_blocks(byte, "overwrites", "read", reader);
}

EMULATOR_UNWATCHED inline void note_block_reads(WatchedArray& array, size_t byte, uint32_t me) {
  uint32_t reader = __atomic_load_n(&array.readers[byte], __ATOMIC_SEQ_CST);
  const uint32_t now = !reader || reader == me ? me : several_blocks;
  __atomic_store_n(&array.readers[byte], now, __ATOMIC_SEQ_CST);
  const uint32_t writer = __atomic_load_n(&array.writers[byte], __ATOMIC_SEQ_CST);
  if (writer && writer != me) report_blocks(byte, "reads", "wrote", writer);
}

template <class Note>
EMULATOR_UNWATCHED void note_global(const void* address, size_t bytes, Note note) {
  for (WatchedArray* array = first_watched; array != end_of_watched; ++array) {
    const size_t offset = size_t(static_cast<const unsigned char*>(address) - array->begin);
    if (offset >= array->bytes) continue;
    expect_waited("a load or store reaches");
    for (size_t i = offset; i < offset + bytes && i < array->bytes; ++i) note(*array, i, block_number());
    return;
  }
}

}  // namespace emulator
