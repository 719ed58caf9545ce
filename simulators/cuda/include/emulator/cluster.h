// Addresses in the shared memory of any block of a cluster.
//
// Its lower bits are the address in the window of the block, above them the block's rank and 1, or 0 for the block of
// the thread itself: an address of one's own window is one of the cluster, too.
#pragma once
#include "shared_window.h"

namespace emulator {

constexpr int rank_shift = 24;
constexpr uint32_t window_mask = (1u << rank_shift) - 1;

Block& block_of_rank(uint32_t rank, const char* instruction);

// mapa: where the other block has what lies here at `address`.
uint32_t map_into(uint32_t address, uint32_t rank);

uint32_t rank_of(uint32_t address);

// The same address, which is now that of its block whatever thread uses it.
inline uint32_t in_cluster(uint32_t address) { return map_into(address, rank_of(address)); }

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
