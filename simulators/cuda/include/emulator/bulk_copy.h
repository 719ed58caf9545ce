// TMA: bulk copies between global and shared memory that one thread issues and the hardware carries out.
//
// Loads complete on an mbarrier, the latest when no thread of the block can go on. Stores complete in groups of the
// issuing thread; at the latest they read shared memory when the thread waits for them.
#pragma once
#include <array>

#include "early_launch.h"
#include "mbarrier.h"
#include "tensor_map.h"

namespace emulator {

struct BulkCopy {
  bool loads;
  uint32_t shared;          // address in the window
  uint32_t barrier;         // of a load: in the cluster
  bool tiled;               // a box of a tensor, or plain bytes
  CUtensorMap map;
  std::array<int32_t, 5> start;
  bool gathers;             // start is a column and the numbers of four rows
  unsigned char* global;    // of plain bytes
  uint32_t bytes;
  const Thread* owner;
  int group;                // of a store
};

void carry_out(const BulkCopy& copy);

// In the block whose shared memory it is to.
void complete_load(const BulkCopy& copy);

// Which box a load copies, and where it may complete.
struct LoadMode {
  bool gathers;   // four rows that are named each by its number (.tile::gather4)
  bool in_pairs;  // on an mbarrier of either block of a pair (.cta_group::2)
};

// To the shared memory of any block of the cluster, whose mbarrier it completes on.
void load_tensor(uint32_t shared, const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t barrier,
                 LoadMode mode);

// To the same place in each block of the cluster whose bit is set, and its mbarrier; each completes on its own.
void multicast_tensor(uint32_t shared, const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t barrier,
                      uint32_t blocks, LoadMode mode);

void store_tensor(const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t shared);

void load_bytes(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier);

void store_bytes(void* global, uint32_t shared, uint32_t bytes);

inline void commit_stores() { ++thread->bulk_group; }

// All but the last `allowed` committed groups of stores of this thread have read shared memory.
void wait_for_stores(int allowed);

}  // namespace emulator
