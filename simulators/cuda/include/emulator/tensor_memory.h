// Tensor memory (tcgen05): 128 lanes of 512 columns of 32 bits for each block, of which warps allocate columns.
//
// An address has its lane in the upper half and its column in the lower. Operations on it are under way from when they
// were issued until a wait says that they are complete, or an mbarrier. Nobody may read what is still written, or write
// what is still read or written, except for chains of work: products that a thread adds to the same sums, and copies of
// scales with the products that read them. What another warp has read or written may be touched when both have passed
// their fences: that warp tcgen05.fence::before_thread_sync behind it, and this one tcgen05.fence::after_thread_sync
// (PTX ISA, "Memory consistency model for 5th generation of TensorCore operations"; a commit is a fence in itself).
// That copies of scales wait for the products before them is in no manual: kernels of CUTLASS and DeepGEMM rely on it.
//
// Columns are allocated from the last ones on: a kernel that takes address 0 for granted fails.
#pragma once
#include "bulk_copy.h"

namespace emulator {

constexpr int tensor_lanes = 128, tensor_columns = 512;
constexpr int slice_lanes = 16, slices = tensor_lanes / slice_lanes;
constexpr int fewest_tensor_columns = 32;

// Some slices of 16 lanes, a bit each, of some columns.
struct TensorRegion {
  uint32_t slices;
  int column, columns;
};

// Who read or wrote last, and when: in the count of its cluster, and in the time of a thread (order.h).
struct TensorTouch {
  uint32_t time = 0;  // 0: nobody did
  int warp = 0;       // its number in the cluster
  bool is_committed = false;  // by the tensor core, for which an mbarrier is a fence in itself
  Access access;
};

// 16 lanes of a column.
struct TensorCell {
  uint16_t writing = 0, reading = 0;  // operations under way
  uint64_t chain = 0;                 // the name of the work among them that completes in order
  TensorTouch written, read;
};

struct TensorAllocation {
  int column, columns;
};

struct TensorOperation;  // see tensor_work.h
struct TensorTransfer;   // see tensor_transfers.h

struct TensorMemory {
  std::vector<uint32_t> words;     // of each lane its columns; empty before the first allocation, like the cells
  std::vector<TensorCell> cells;   // of each slice its columns
  std::vector<TensorAllocation> allocations;
  bool may_allocate = true;
  int group = 0;                   // of the kernel's instructions (.cta_group); 0 before the first one
  int wanted = 0, granted = -1;    // columns that a warp asks for, and the first of them where they are granted
  std::vector<TensorOperation> operations;  // that threads of this block have issued
  std::vector<TensorTransfer> transfers;

  TensorMemory();
  ~TensorMemory();
  TensorCell& cell(int slice, int column) { return cells[size_t(slice * tensor_columns + column)]; }
  uint32_t& word(int lane, int column) { return words[size_t(lane * tensor_columns + column)]; }
};

inline int lane_of(uint32_t address) { return int(address >> 16); }
inline int column_of(uint32_t address) { return int(address & 0xffff); }

int warp_number(const Thread& t);

// That instructions of a kernel agree on .cta_group, and that a pair of blocks is one.
void expect_tensor_group(int group, const char* instruction);

// The block itself, or those of its pair: their ranks differ in the last bit.
template <class Act>
void for_each_of_group(int group, Act act) {
  const Cluster& cluster = *block->cluster;
  const int first = block->rank / group * group;
  for (int i = 0; i < group; ++i) in_block(*cluster.blocks[size_t(first + i)], [&] { act(i); });
}

// `chain`: the name of work that completes in the order in which it was issued, and may touch what the work before it
// still touches; 0 for other operations.
void begin_tensor_read(const TensorRegion& region, const char* instruction, uint64_t chain = 0);

void end_tensor_read(const TensorRegion& region, const TensorTouch& touch);

void begin_tensor_write(const TensorRegion& region, const char* instruction, uint64_t chain = 0);

void end_tensor_write(const TensorRegion& region, const TensorTouch& touch);

// An access of the warp of `t`, as of now.
TensorTouch touch_by(const Thread& t);

// A whole warp allocates columns, and their address is written to shared memory. It waits until there are enough; of a
// pair of blocks, until a warp of the other asks for as many, too: both get the same columns.
void allocate_tensor_memory(int group, uint32_t shared, uint32_t columns);

void free_tensor_memory(int group, uint32_t address, uint32_t columns);

void give_up_allocating(int group);

void fence_tensor_memory_before_sync();

void fence_tensor_memory_after_sync();

}  // namespace emulator
