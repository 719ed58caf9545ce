#include "launch.h"

#include <mutex>
#include <stdexcept>
#include <thread>

#include "../../../fibers/stacks.h"
#include "asynchronous.h"
#include "barriers.h"
#include "faults.h"
#include "watched_arrays.h"

namespace emulator {
namespace {

dim3 index_in(const dim3& extent, size_t linear) {
  return {unsigned(linear % extent.x), unsigned(linear / extent.x % extent.y),
          unsigned(linear / extent.x / extent.y)};
}

constexpr size_t most_blocks_of_cluster = 8;  // on every GPU that has clusters

// Blocks of a cluster, as the kernel or its launch says.
unsigned cluster_size(const Kernel& kernel, const Shape& shape) {
  return std::max(kernel.cluster, shape.cluster.x);
}

// What the driver would refuse, and clusters that are not emulated.
void check_cluster(const Kernel& kernel, const Shape& shape) {
  const auto refuse = [](const std::string& why) { throw std::invalid_argument("cannot be launched: " + why); };
  const unsigned blocks = cluster_size(kernel, shape);
  if (volume(shape.cluster) != shape.cluster.x)
    refuse("clusters of " + in_words(shape.cluster) + " blocks; the emulator has those along x alone");
  if (kernel.cluster > 1 && shape.cluster.x > 1 && kernel.cluster != shape.cluster.x)
    refuse("clusters of " + std::to_string(shape.cluster.x) + " blocks, __cluster_dims__ says " +
           std::to_string(kernel.cluster));
  if (blocks > most_blocks_of_cluster) refuse("a cluster of " + std::to_string(blocks) + " blocks has more than 8");
  if (shape.grid.x % std::max(blocks, 1u))
    refuse("its grid " + in_words(shape.grid) + " is no whole number of clusters of " + std::to_string(blocks));
}

// What the driver would refuse.
void check_shape(const Kernel& kernel, const Shape& shape) {
  check_cluster(kernel, shape);
  const dim3 &grid = shape.grid, &block = shape.block;
  const auto refuse = [](const std::string& why) { throw std::invalid_argument("cannot be launched: " + why); };
  if (!volume(grid) || !volume(block))
    refuse("its grid " + in_words(grid) + " or block " + in_words(block) + " is empty");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    refuse("its grid " + in_words(grid) + " has more than 2147483647 x 65535 x 65535 blocks");
  if (volume(block) > 1024 || block.z > 64) refuse("its block " + in_words(block) + " has more than 1024 threads");
  if (kernel.most_threads && volume(block) > kernel.most_threads)
    refuse("its block " + in_words(block) + " has more threads than __launch_bounds__ says, " +
           std::to_string(kernel.most_threads));
  if (kernel.static_bytes > static_shared_limit)
    refuse("its static shared arrays need " + std::to_string(kernel.static_bytes) + " bytes of 48 KiB");
  if (kernel.static_bytes + shape.dynamic_bytes > settings.shared_limit)
    refuse("it needs " + std::to_string(kernel.static_bytes + shape.dynamic_bytes) +
           " bytes of shared memory of " + std::to_string(settings.shared_limit >> 10) + " KiB");
}

// The end of a thread: nobody waits for it any longer.
[[noreturn]] void exit_thread() {
  Thread& me = *thread;
  check_left_behind(me);
  check_has_waited(me);
  Warp& warp = block->warps[me.warp];
  me.state = State::exited;
  warp.live &= ~(1u << me.lane);
  warp.ready &= ~(1u << me.lane);
  Cluster& cluster = *block->cluster;
  --block->live;
  --cluster.live;
  ++cluster.progress;
  for (size_t i = 0; i < warp.meetings.size();) i = hold_if_complete(me.warp, i) ? 0 : i + 1;
  for (Barrier& barrier : block->barriers)
    if (!barrier.expected) open_if_complete(barrier);
  open_if_complete(cluster);
  if (block->live == 0) check_left_behind();
  if (cluster.live == 0) fibers::switch_context(me.context, cluster.scheduler);
  run_thread(*choose_next());
  __builtin_unreachable();
}

void thread_main() {
  block->kernel(block->arguments);
  exit_thread();
}

// `stacks[first]` is the first of its threads'.
void start_block(Block& b, fibers::Stacks& stacks, size_t first, size_t linear) {
  const size_t count = volume(b.shape);
  b.index = index_in(b.grid, linear);
  b.live = int(count);
  for (Barrier& barrier : b.barriers) barrier = Barrier{};
  b.shared.be_born();
  reset_asynchronous_state(b);
  b.threads.resize(count);
  b.warps.assign((count + warp_size - 1) / warp_size, Warp{});
  for (size_t i = 0; i < count; ++i) {
    Thread& t = b.threads[i];
    t.index = index_in(b.shape, i);
    t.linear = int(i);
    t.number = int(first + i);
    t.home = &b;
    t.lane = int(i % warp_size);
    t.warp = int(i / warp_size);
    t.state = State::ready;
    t.waits_for = "its start";
    t.waits_on = nullptr;
    t.copies = CopyGroups{};
    t.bulk_group = 0;
    t.fences = 0;
    t.has_waited = !b.begins_early;
    t.cluster_barriers = 0;
    b.warps[size_t(t.warp)].live |= 1u << t.lane;
    b.warps[size_t(t.warp)].ready |= 1u << t.lane;
    fibers::prepare_context(t.context, stacks[first + i], stack_bytes, thread_main);
  }
  if (watched) b.history.assign(b.shared.bytes, ByteHistory{});
}

// The blocks from number `linear` on.
void start_cluster(Cluster& cluster, fibers::Stacks& stacks, size_t linear) {
  cluster.live = 0;
  cluster.progress = 1;
  cluster.seen_progress = 0;
  cluster.opened = 0;
  cluster.tensor_accesses = 0;
  cluster.barrier = Barrier{};
  cluster.error.clear();
  cluster.dice.state = uint64_t(schedule.seed) << 32 | linear;
  for (const auto& b : cluster.blocks) {
    start_block(*b, stacks, size_t(cluster.live), linear++);
    cluster.live += b->live;
  }
  start_clocks(cluster);
}

std::string run_cluster(Cluster& cluster, fibers::Stacks& stacks, size_t linear) {
  start_cluster(cluster, stacks, linear);
  block = cluster.blocks[0].get();
  thread = &block->threads[settings.first_thread % block->threads.size()];
  fibers::switch_context(cluster.scheduler, thread->context);
  const Block* where = thread->home;
  std::string place = "thread " + in_words(thread->index), error = cluster.error;
  thread = nullptr;
  for (const auto& b : cluster.blocks)
    if (const char* array = error.empty() ? b->shared.overrun_array() : nullptr) {
      error = std::string("shared memory behind the end of ") + array + " was written";
      place = "some thread";
      where = b.get();
    }
  return error.empty() ? "" : "block " + in_words(where->index) + ", " + place + ": " + error;
}

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
                 Outcome& outcome) {
  const FaultStacks fault_stacks;
  Cluster cluster;
  const size_t together = cluster_size(kernel, shape);
  // Not kept for the next launch: every library has its own, and a process may have some 65000 mappings in all.
  fibers::Stacks stacks(volume(shape.block) * together, stack_bytes, stack_guard_bytes);
  for (size_t rank = 0; rank < together; ++rank) {
    cluster.blocks.push_back(std::make_unique<Block>());
    Block& b = *cluster.blocks.back();
    b.cluster = &cluster;
    b.rank = int(rank);
    b.grid = shape.grid;
    b.shape = shape.block;
    b.kernel = kernel.run;
    b.arguments = arguments;
    b.begins_early = begins_early;
    b.launch_registers = registers_at_launch(kernel.most_threads ? kernel.most_threads : volume(shape.block));
    b.shared.reserve(kernel.static_bytes, shape.dynamic_bytes, kernel.pool_alignment, kernel.red_zones);
  }
  const size_t clusters = volume(shape.grid) / together;
  for (size_t number; (number = outcome.take()) < clusters;) {
    const std::string error = run_cluster(cluster, stacks, number * together);
    if (!error.empty()) outcome.record(number, error);
  }
  for (const auto& b : cluster.blocks) b->shared.release();
}

// Takes blocks until there are none. Its own errors (no memory) are recorded too: nothing may leave an OS thread.
void run_blocks(const Kernel& kernel, const Shape& shape, const void* arguments, bool begins_early,
                Outcome& outcome) {
  try {
    take_blocks(kernel, shape, arguments, begins_early, outcome);
  } catch (const std::exception& error) {
    outcome.record(SIZE_MAX - 1, error.what());
  }
}

// The number of OS threads: the environment's MOEC_EMULATOR_THREADS, or one per core, and at most one per block.
size_t worker_count(size_t blocks) {
  const char* chosen = getenv("MOEC_EMULATOR_THREADS");
  const long count = chosen ? atol(chosen) : long(std::thread::hardware_concurrency());
  return std::min(blocks, size_t(std::max(1L, count)));
}

}  // namespace

void launch(const Kernel& kernel, const Shape& shape, const void* arguments, bool begins_early) {
  static std::mutex one_at_a_time;  // as kernels on one stream
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  check_shape(kernel, shape);
  forget_blocks();
  const FaultReports reports;
  Outcome outcome;
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < worker_count(volume(shape.grid)); ++i)
    helpers.emplace_back([&] { run_blocks(kernel, shape, arguments, begins_early, outcome); });
  run_blocks(kernel, shape, arguments, begins_early, outcome);
  for (std::thread& helper : helpers) helper.join();
  if (outcome.failed != SIZE_MAX) throw std::runtime_error(outcome.error);
}

}  // namespace emulator
