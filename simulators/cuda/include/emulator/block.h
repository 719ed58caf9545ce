// What is emulated: a cluster of blocks of threads in warps of 32, run in turn by one OS thread. Most blocks are alone in
// theirs.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "../../../fibers/context.h"
#include "copies.h"
#include "dialect.h"
#include "schedule.h"
#include "settings.h"
#include "shared_memory.h"

namespace emulator {

constexpr int warp_size = 32;
constexpr uint32_t all_lanes = 0xffffffffu;
constexpr size_t stack_bytes = 128 << 10;
constexpr size_t stack_guard_bytes = 4 << 10;  // kernels are compiled so that no frame jumps over them
constexpr int named_barriers = 16;

enum class State : uint8_t { ready, waiting, converging, polling, exited };

struct Block;

struct Thread {
  fibers::Context context;
  dim3 index;
  int linear, lane, warp;
  int number;             // in its cluster
  Block* home;
  State state;
  const char* waits_for;  // an instruction's name, for messages
  const void* waits_on;   // the barrier it waits on
  uint32_t converged;     // the lanes that were found to run together
  CopyGroups copies;      // cp.async of this thread
  int bulk_group;         // of TMA stores, the one that is being filled
  uint32_t fences;        // how often it has passed fence.proxy.async
  bool has_waited;        // for the kernels before this one: see early_launch.h
  uint32_t cluster_barriers;  // at how many barriers of its cluster it has arrived
};

// Lanes of a warp that have arrived at an instruction which they carry out together.
struct Meeting {
  const char* instruction;
  uint32_t mask, arrived;
  void* arguments[warp_size];
  void (*carry_out)(Meeting&);
};

// When a warp has passed fences of tensor memory, in its cluster's count of accesses to it: see tensor_memory.h.
struct TensorFences {
  uint32_t before_sync = 0, after_sync = 0;
};

struct Warp {
  uint32_t live, ready;
  std::vector<Meeting> meetings;
  TensorFences tensor_fences;
};

struct Barrier {
  int arrived = 0, expected = 0;
  std::vector<uint32_t> arriving, completed;  // clocks of those that arrive, and did before it opened: see order.h
};

// An mbarrier that was initialised, and the clocks of those that arrived in this phase and in the one before.
struct MemoryBarrierClocks {
  uint32_t address;
  std::vector<uint32_t> arriving, completed;
  int initialised_by;      // the number of a thread
  uint32_t initialised_at; // in its time: see order.h
  bool published = false;  // to the asynchronous proxy: that thread has passed a fence since
};

// Who touched a byte of shared memory, and when: see order.h. Time 0 is never.
struct Access {
  uint32_t time = 0;
  uint16_t thread = 0;
};
struct ByteHistory {
  Access write;
  Access reads[2];
  uint32_t fences = 0;  // of the thread that wrote it, up to then
};

struct BulkCopy;
struct LateArrival;
struct WarpGroup;
struct TensorMemory;
struct Cluster;

struct Block {
  Cluster* cluster;
  int rank;  // in it
  dim3 grid, shape, index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[named_barriers];
  SharedMemory shared;
  std::vector<ByteHistory> history;                  // of each byte of shared memory
  std::vector<MemoryBarrierClocks> memory_barriers;  // those that were initialised
  std::vector<BulkCopy> bulk_copies;                 // TMA copies that are under way to or from its shared memory
  std::vector<LateArrival> late_arrivals;            // of cp.async.mbarrier.arrive
  std::vector<WarpGroup> warp_groups;                // what is under way on the tensor cores
  std::unique_ptr<TensorMemory> tensor_memory;
  uint32_t launch_registers, spare_registers;        // of a thread; of the block, in nobody's hands: see registers.h
  int live;                                          // threads that have not exited
  bool begins_early;                                 // before the kernels before have ended: see early_launch.h
  void (*kernel)(const void* arguments);
  const void* arguments;

  Block();
  ~Block();
};

// Blocks that run at the same time and reach one another's shared memory.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<uint32_t> clocks;  // of each thread a row with an entry for each: see order.h
  Barrier barrier;
  uint32_t opened;               // how often the barrier was
  int live;                      // threads that have not exited
  uint32_t tensor_accesses;      // that have completed, and fences
  long progress, seen_progress;  // events that may end a wait, and those that polling has seen
  Dice dice;                     // of the schedule, where it is drawn
  fibers::Context scheduler;
  std::string error;

  size_t threads() const { return blocks.size() * blocks[0]->threads.size(); }
  Thread& thread(size_t number) const {
    const size_t of_each = blocks[0]->threads.size();
    return blocks[number / of_each]->threads[number % of_each];
  }
};

inline thread_local Block* block;
inline thread_local Thread* thread;

// Ends the emulation of this cluster. The stacks of its threads are dropped as they are.
[[noreturn]] void fail(const std::string& what);

}  // namespace emulator

#define threadIdx (emulator::thread->index)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->shape)
#define gridDim (emulator::block->grid)
#define warpSize 32
