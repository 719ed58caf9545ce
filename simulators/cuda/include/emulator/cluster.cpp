#include "cluster.h"

namespace emulator {

Block& block_of_rank(uint32_t rank, const char* instruction) {
  const auto& blocks = block->cluster->blocks;
  if (rank >= blocks.size())
    fail(std::string(instruction) + ": block " + std::to_string(rank) + " of a cluster of " +
         std::to_string(blocks.size()));
  if (!blocks[rank]->live)
    fail(std::string(instruction) + ": block " + std::to_string(rank) + " of the cluster has ended, and its shared " +
         "memory with it");
  return *blocks[rank];
}

uint32_t map_into(uint32_t address, uint32_t rank) {
  if (rank >= block->cluster->blocks.size()) block_of_rank(rank, "mapa");
  return (rank + 1) << rank_shift | (address & window_mask);
}

uint32_t rank_of(uint32_t address) {
  return address >> rank_shift ? (address >> rank_shift) - 1 : uint32_t(thread->home->rank);
}

}  // namespace emulator
