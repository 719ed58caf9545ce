// Addresses in the shared memory of any block of a cluster.
//
// Its lower bits are the address in the window of the block, above them the block's rank and 1, or 0 for the block of
// the thread itself: an address of one's own window is one of the cluster, too.
#pragma once
#include "shared_window.h"

namespace emulator {

constexpr int rank_shift = 24;
constexpr uint32_t window_mask = (1u << rank_shift) - 1;

inline Block& block_of_rank(uint32_t rank, const char* instruction) {
  const auto& blocks = block->cluster->blocks;
  if (rank >= blocks.size())
    fail(std::string(instruction) + ": block " + std::to_string(rank) + " of a cluster of " +
         std::to_string(blocks.size()));
  if (!blocks[rank]->live)
    fail(std::string(instruction) + ": block " + std::to_string(rank) + " of the cluster has ended, and its shared " +
         "memory with it");
  return *blocks[rank];
}

// mapa: where the other block has what lies here at `address`.
inline uint32_t map_into(uint32_t address, uint32_t rank) {
  if (rank >= block->cluster->blocks.size()) block_of_rank(rank, "mapa");
  return (rank + 1) << rank_shift | (address & window_mask);
}

inline uint32_t rank_of(uint32_t address) {
  return address >> rank_shift ? (address >> rank_shift) - 1 : uint32_t(thread->home->rank);
}

// Calls `act` as if the calling thread were one of that block.
template <class Act>
void in_block(Block& other, Act act) {
  Block* const own = block;
  block = &other;
  act();
  block = own;
}

// The same of the block that an address lies in, with its address there.
template <class Act>
void in_block_of(uint32_t address, const char* instruction, Act act) {
  in_block(block_of_rank(rank_of(address), instruction), [=] { act(address & window_mask); });
}

}  // namespace emulator
