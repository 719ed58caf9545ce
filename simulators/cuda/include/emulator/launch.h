// Runs the blocks of a grid, cluster by cluster, on as many OS threads as there are cores.
#pragma once
#include "asynchronous.h"
#include "early_launch.h"
#include "warp.h"

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

// Runs a grid to its end. `begins_early`: as a GPU would begin it before the kernels before have ended. Throws
// std::exception naming block and thread where the kernel failed.
void launch(const Kernel& kernel, const Shape& shape, const void* arguments, bool begins_early = false);

}  // namespace emulator
