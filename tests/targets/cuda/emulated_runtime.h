// The part of CUDA's runtime that a standalone program calls, on the emulator.
#pragma once
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "emulator/emulator.h"

enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

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
