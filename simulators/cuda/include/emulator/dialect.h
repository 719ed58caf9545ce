// The words that CUDA adds to C++, for a compiler that does not know them.
#pragma once
#include <cstddef>
#include <cstdint>

#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 8
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __constant__

// Functions whose accesses are the emulator's own, not the kernel's: see watch.h.
#define EMULATOR_UNWATCHED __attribute__((no_sanitize_thread))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline size_t volume(const dim3& extent) { return size_t(extent.x) * extent.y * extent.z; }
