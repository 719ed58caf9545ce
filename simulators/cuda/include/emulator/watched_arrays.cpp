#include "watched_arrays.h"

namespace emulator {

void forget_blocks() {
  first_watched = watched_arrays.data();
  end_of_watched = first_watched + watched_arrays.size();
  for (WatchedArray& array : watched_arrays) {
    array.writers.assign(array.bytes, 0);
    array.readers.assign(array.bytes, 0);
  }
}

EMULATOR_UNWATCHED uint32_t block_number() {
  return uint32_t((size_t(block->index.z) * block->grid.y + block->index.y) * block->grid.x + block->index.x) + 1;
}

[[noreturn]] static void report_blocks(size_t byte, const char* does, const char* did, uint32_t other) {
  const std::string who = other == several_blocks ? "several blocks" : "block " + std::to_string(other - 1);
  fail(std::string("race: this block ") + does + " byte " + std::to_string(byte) + " of an array in global memory, " +
       "which " + who + " " + did + " in the same launch");
}

EMULATOR_UNWATCHED void note_block_writes(WatchedArray& array, size_t byte, uint32_t me) {
  const uint32_t writer = __atomic_exchange_n(&array.writers[byte], me, __ATOMIC_SEQ_CST);
  if (writer && writer != me) report_blocks(byte, "overwrites", "wrote", writer);
  const uint32_t reader = __atomic_load_n(&array.readers[byte], __ATOMIC_SEQ_CST);
  if (reader && reader != me) report_blocks(byte, "overwrites", "read", reader);
}

EMULATOR_UNWATCHED void note_block_reads(WatchedArray& array, size_t byte, uint32_t me) {
  uint32_t reader = __atomic_load_n(&array.readers[byte], __ATOMIC_SEQ_CST);
  const uint32_t now = !reader || reader == me ? me : several_blocks;
  __atomic_store_n(&array.readers[byte], now, __ATOMIC_SEQ_CST);
  const uint32_t writer = __atomic_load_n(&array.writers[byte], __ATOMIC_SEQ_CST);
  if (writer && writer != me) report_blocks(byte, "reads", "wrote", writer);
}

}  // namespace emulator
