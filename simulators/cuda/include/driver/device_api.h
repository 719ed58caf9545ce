// The emulated GPU as TVM's runtime sees it: memory of the host, and streams that run their work at once.
#pragma once
#include <tvm/ffi/function.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "state.h"

// How many multiprocessors the GPU has: few, so that blocks of threads that share tiles have several each, and how much
// memory. Tests set both.
extern "C" {
__attribute__((visibility("default"))) inline int emulated_multiprocessors = 2;
__attribute__((visibility("default"))) inline int64_t emulated_memory_bytes = int64_t(80) << 30;
}

namespace driver {

constexpr size_t alignment = 256;       // of cudaMalloc
constexpr size_t most_poisoned = 1 << 20;  // bytes of an allocation that are set, for the sake of time

inline void check(Result result, const char* function) {
  if (result == success) return;
  const char* meaning = result == out_of_memory    ? "out of memory"
                        : result == invalid_handle ? "invalid resource handle"
                                                   : "operation not permitted when stream is capturing";
  TVM_FFI_THROW(RuntimeError) << "CUDA Runtime Error: " << function << ": " << meaning << " (" << int(result) << ")";
}

// Memory of kernels' calls that a thread has, as in TVM: it goes when the thread ends.
struct Workspaces {
  tvm::runtime::DeviceAPI* device = nullptr;
  std::vector<std::pair<void*, size_t>> free;
  ~Workspaces() {
    for (auto [memory, size] : free) device->FreeDataSpace({}, memory);
  }
};
inline thread_local Workspaces workspaces;

class EmulatedDevice final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(tvm::Device) final {}

  void GetAttr(tvm::Device, tvm::runtime::DeviceAttrKind kind, tvm::ffi::Any* value) final {
    if (kind == tvm::runtime::kExist) *value = 1;
    else if (kind == tvm::runtime::kMultiProcessorCount) *value = emulated_multiprocessors;
  }

  void* AllocDataSpace(tvm::Device, size_t bytes, size_t, DLDataType) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    count("cudaMalloc");
    check(potentially_unsafe(), "cudaMalloc");
    const size_t whole = (bytes + alignment - 1) / alignment * alignment;
    const bool fits = whole >= bytes && whole <= size_t(std::max<int64_t>(0, emulated_memory_bytes - in_use));
    void* memory = fits ? std::aligned_alloc(alignment, whole ? whole : alignment) : nullptr;
    check(memory ? success : out_of_memory, "cudaMalloc");
    std::memset(memory, 0xff, whole < most_poisoned ? whole : most_poisoned);  // NaN
    sizes_[memory] = whole;
    in_use += whole;
    return memory;
  }

  void FreeDataSpace(tvm::Device, void* memory) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    count("cudaFree");
    const size_t whole = sizes_[memory];
    sizes_.erase(memory);
    in_use -= whole;
    std::memset(memory, 0xff, whole < most_poisoned ? whole : most_poisoned);
    std::free(memory);  // a destructor calls this, so that a capture is broken but nothing is thrown
    (void)potentially_unsafe();
  }

  void* AllocWorkspace(tvm::Device device, size_t bytes, DLDataType type) final {
    for (auto block = workspaces.free.begin(); block != workspaces.free.end(); ++block)
      if (block->second >= bytes) {
        void* memory = block->first;
        workspaces.free.erase(block);
        return memory;
      }
    return AllocDataSpace(device, bytes, alignment, type);
  }

  void FreeWorkspace(tvm::Device, void* memory) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    workspaces.device = this;
    workspaces.free.emplace_back(memory, sizes_[memory]);
  }

  void* CreateStream(tvm::Device) final { return std::malloc(1); }
  // Its memory stays, so that no other stream has its address.
  void FreeStream(tvm::Device, void* stream) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    destroyed.insert(stream);
  }

  void StreamSync(tvm::Device, void* stream) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    count("cudaStreamSynchronize");
    if (Capture* capture = capture_on(stream)) check(capture->broken = capture_unsupported, "cudaStreamSynchronize");
    check(potentially_unsafe(), "cudaStreamSynchronize");
  }

  // An event of a stream that is not captured cannot be waited for in a capture, nor the other way round.
  void SyncStreamFromTo(tvm::Device, void* from, void* to) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    count("cudaStreamWaitEvent");
    if (destroyed.count(from)) check(invalid_handle, "cudaEventRecord");
    for (void* stream : {from, to})
      if (Capture* capture = from == to ? nullptr : capture_on(stream))
        check(capture->broken = capture_isolation, "cudaStreamWaitEvent");
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_device, tvm::Device to_device, DLDataType,
                      void* stream) final {
    std::lock_guard<std::recursive_mutex> lock(turn);
    const void* source = static_cast<const char*>(from) + from_offset;
    void* target = static_cast<char*>(to) + to_offset;
    const bool to_host = to_device.device_type != kDLCUDA, from_host = from_device.device_type != kDLCUDA;
    Result result;
    if (to_host || from_host) {
      result = copy_host(to_host ? "copy to host" : "copy from host", target, source, bytes, to_host ? target : source,
                         stream);
    } else {
      count("copy on device");
      result = submit(stream, [=] { return std::memcpy(target, source, bytes), success; });
    }
    check(result, "cudaMemcpyAsync");
  }

 private:
  std::map<void*, size_t> sizes_;
};

}  // namespace driver
