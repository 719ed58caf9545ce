// The part of CUDA's runtime that a standalone program calls, on the emulator, whose code comes with it: the program is
// of one source.
#pragma once
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "emulator/emulator.cpp"
#include "emulator/emulator.h"
#include "emulator/tensor_map.h"

const emulator::Settings emulator::settings = {0, 227 << 10, false, false};

enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 2;
  return cudaSuccess;
}

template <class Function>
cudaError_t cudaFuncSetAttribute(Function*, cudaFuncAttribute, size_t) {
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** address, size_t bytes) {
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  std::memcpy(target, source, bytes);
  return cudaSuccess;
}

template <class Symbol>
cudaError_t cudaMemcpyFromSymbol(void* target, const Symbol& symbol, size_t bytes) {
  std::memcpy(target, &symbol, bytes);
  return cudaSuccess;
}

// The processor's time, in nanoseconds: it tells nothing of a GPU.
inline long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

// What describes a tensor to TMA, of the types and ways that moec's kernels use.
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
enum CUtensorMapDataType {  // the bytes of an element
  CU_TENSOR_MAP_DATA_TYPE_UINT8 = 1,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 2,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 4,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 2
};
enum CUtensorMapInterleave {};
enum CUtensorMapSwizzle {};
enum CUtensorMapL2promotion {};
enum CUtensorMapFloatOOBfill {};

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                       const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill fill) {
  constexpr uint32_t swizzled_bytes[] = {~0u, 32, 64, 128};
  if (rank < 1 || rank > 5 || interleave || fill || reinterpret_cast<uint64_t>(address) % 16 ||
      box[0] * type > swizzled_bytes[swizzle] || box[0] * type % 16)
    return CUDA_ERROR_INVALID_VALUE;
  *map = {reinterpret_cast<uint64_t>(address), rank, uint32_t(type), uint32_t(swizzle), 0, {1, 1, 1, 1, 1}, {}, {1, 1, 1, 1, 1}};
  for (cuuint32_t axis = 0; axis < rank; ++axis) {
    if (steps[axis] != 1 || box[axis] < 1 || box[axis] > 256) return CUDA_ERROR_INVALID_VALUE;
    map->extents[axis] = extents[axis];
    map->box[axis] = box[axis];
    if (axis + 1 == rank) continue;
    if (strides[axis] % 16) return CUDA_ERROR_INVALID_VALUE;
    map->strides[axis] = strides[axis];
  }
  return CUDA_SUCCESS;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };

// The driver's only function that programs ask for.
inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, int,
                                                    cudaDriverEntryPointQueryResult* status) {
  *found = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

template <class Value>
struct Itself {
  using type = Value;
};

// `kernel<<<grid, block, bytes>>>(arguments...)`.
template <auto kernel, class... Parameters>
void emulated_launch(void (*)(Parameters...), emulator::Kernel facts, dim3 grid, dim3 block, size_t bytes,
                     typename Itself<Parameters>::type... arguments) {
  const std::tuple<Parameters...> packed{arguments...};
  facts.run = [](const void* given) { std::apply(kernel, *static_cast<const std::tuple<Parameters...>*>(given)); };
  emulator::launch(facts, emulator::Shape{grid, block, bytes}, &packed);
}
