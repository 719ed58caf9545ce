// Runs the blocks of a grid, cluster by cluster, on as many OS threads as there are cores.
#pragma once
#include <mutex>
#include <stdexcept>
#include <thread>

#include "../../../fibers/stacks.h"
#include "asynchronous.h"
#include "barriers.h"
#include "early_launch.h"
#include "faults.h"
#include "warp.h"
#include "watched_arrays.h"

namespace emulator {

struct Kernel {
  const char* name;
  void (*run)(const void* arguments);
  size_t most_threads;  // __launch_bounds__; 0 where none are given
  size_t static_bytes;
  size_t pool_alignment;  // as declared
  std::vector<RedZone> red_zones;
  unsigned cluster = 1;   // __cluster_dims__
};

struct Shape {
  dim3 grid, block;
  size_t dynamic_bytes = 0;
  dim3 cluster;  // where the launch says it
};

dim3 index_in(const dim3& extent, size_t linear);

constexpr size_t most_blocks_of_cluster = 8;  // on every GPU that has clusters

// Blocks of a cluster, as the kernel or its launch says.
inline unsigned cluster_size(const Kernel& kernel, const Shape& shape) { return std::max(kernel.cluster, shape.cluster.x); }

// What the driver would refuse, and clusters that are not emulated.
void check_cluster(const Kernel& kernel, const Shape& shape);

// What the driver would refuse.
void check_shape(const Kernel& kernel, const Shape& shape);

// The end of a thread: nobody waits for it any longer.
[[noreturn]] void exit_thread();

void thread_main();

// `stacks[first]` is the first of its threads'.
void start_block(Block& b, fibers::Stacks& stacks, size_t first, size_t linear);

// The blocks from number `linear` on.
void start_cluster(Cluster& cluster, fibers::Stacks& stacks, size_t linear);

std::string run_cluster(Cluster& cluster, fibers::Stacks& stacks, size_t linear);

// What the OS threads of a launch share.
struct Outcome {
  std::mutex guard;
  size_t next = 0;           // the first cluster that nobody has taken
  size_t failed = SIZE_MAX;  // the first one that failed
  std::string error;

  size_t take() {
    const std::lock_guard<std::mutex> lock(guard);
    return failed == SIZE_MAX ? next++ : SIZE_MAX;  // after a failure the others need not start
  }

  void record(size_t linear, const std::string& what) {
    const std::lock_guard<std::mutex> lock(guard);
    if (linear >= failed) return;
    failed = linear;
    error = what;
  }
};

void take_blocks(const Kernel& kernel, const Shape& shape, const void* arguments, bool begins_early,
                 Outcome& outcome);

// Takes blocks until there are none. Its own errors (no memory) are recorded too: nothing may leave an OS thread.
void run_blocks(const Kernel& kernel, const Shape& shape, const void* arguments, bool begins_early,
                Outcome& outcome);

// The number of OS threads: the environment's MOEC_EMULATOR_THREADS, or one per core, and at most one per block.
size_t worker_count(size_t blocks);

// Runs a grid to its end. `begins_early`: as a GPU would begin it before the kernels before have ended. Throws
// std::exception naming block and thread where the kernel failed.
void launch(const Kernel& kernel, const Shape& shape, const void* arguments, bool begins_early = false);

}  // namespace emulator
