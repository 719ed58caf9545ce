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

void forget_blocks();

EMULATOR_UNWATCHED uint32_t block_number();

// A write is seen by others before it looks for their reads, and a read before it looks for their writes, so that of
// two at the same time one is reported.
EMULATOR_UNWATCHED void note_block_writes(WatchedArray& array, size_t byte, uint32_t me);

EMULATOR_UNWATCHED void note_block_reads(WatchedArray& array, size_t byte, uint32_t me);

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
