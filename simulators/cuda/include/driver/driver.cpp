// A stand-in for NVIDIA's driver, with the functions that moec calls, and for the device of TVM's runtime. Kernels are
// the emulator's: their entry points ask `record_launch` whether a launch belongs to a capture.
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#include "../emulator/tensor_map.h"
#include "device_api.h"

using namespace driver;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define LOCKED(name)                                     \
  std::lock_guard<std::recursive_mutex> lock(turn); \
  count(name)

namespace {

using Entry = int32_t (*)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);

const CUtensorMap* map_at(const TVMFFIAny& value) { return static_cast<const CUtensorMap*>(value.v_ptr); }

void* address(uint64_t number) { return reinterpret_cast<void*>(number); }

thread_local bool replaying = false;  // launches of a graph do not count as the host's

Result launch_all(const Graph& graph) {
  replaying = true;
  Result result = success;
  for (const Work& work : graph.work)
    if (!result) result = work();
  replaying = false;
  return result;
}

}  // namespace

EXPORT void* emulated_device_api() {
  static EmulatedDevice device;
  return &device;
}

// Whether the launch was recorded; if not, the caller runs it now. `maps`: the places of values that are addresses of
// tensor maps, then -1: a graph keeps the maps themselves, as it keeps all that a kernel takes by value.
EXPORT bool record_launch(void* entry, const TVMFFIAny* values, int32_t number, const int32_t* maps) {
  void* stream = TVMFFIEnvGetStream(kDLCUDA, 0);
  std::lock_guard<std::recursive_mutex> lock(turn);
  if (!capture_on(stream) || replaying) return count(replaying ? "launch in a graph" : "launch"), false;
  std::vector<std::shared_ptr<CUtensorMap>> kept;
  for (; *maps >= 0; ++maps) kept.push_back(std::make_shared<CUtensorMap>(*map_at(values[*maps])));
  std::vector<int32_t> places(maps - kept.size(), maps);
  submit(stream, [=, values = std::vector<TVMFFIAny>(values, values + number)]() mutable {
    for (size_t i = 0; i < kept.size(); ++i) values[places[i]].v_ptr = kept[i].get();
    TVMFFIAny nothing{};
    return reinterpret_cast<Entry>(entry)(nullptr, values.data(), number, &nothing) ? illegal_address : success;
  });
  return true;
}

// The calls so far, as lines of a name and a number.
EXPORT const char* emulated_counts() {
  static std::string text;
  std::lock_guard<std::recursive_mutex> lock(turn);
  text.clear();
  for (const auto& [name, number] : counts) text += name + "=" + std::to_string(number) + "\n";
  return text.c_str();
}

EXPORT int cuInit(unsigned) { return success; }
EXPORT int cuDriverGetVersion(int* version) { return *version = 13000, success; }
EXPORT int cuDeviceGetCount(int* number) { return *number = 1, success; }
EXPORT int cuDeviceGetName(char* name, int size, int) { return std::strncpy(name, "emulated GPU", size), success; }
EXPORT int cuDeviceGetAttribute(int* value, int, int) { return *value = 0, success; }
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = emulated_memory_bytes, success; }
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &captures, success; }
EXPORT int cuCtxSetCurrent(void*) { return success; }
EXPORT int cuStreamCreate(void** stream, unsigned) { return *stream = std::malloc(1), success; }
EXPORT int cuGetErrorName(int, const char** text) { return *text = nullptr, invalid_value; }
EXPORT int cuGetErrorString(int, const char** text) { return *text = nullptr, invalid_value; }

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
  std::lock_guard<std::recursive_mutex> lock(turn);
  *total = emulated_memory_bytes;
  return *free = std::max<int64_t>(0, emulated_memory_bytes - in_use), success;
}

// Work is done at once, so that an event has happened when it is recorded. In a capture it is part of the graph.
EXPORT int cuEventCreate(void** event, unsigned) { return *event = std::malloc(1), success; }
EXPORT int cuEventDestroy_v2(void* event) { return std::free(event), success; }

EXPORT int cuEventRecord(void*, void* stream) {
  LOCKED("cuEventRecord");
  return submit(stream, [] { return success; });
}

EXPORT int cuEventSynchronize(void*) {
  LOCKED("cuEventSynchronize");
  return potentially_unsafe();
}

EXPORT int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  LOCKED("cuMemHostAlloc");
  if (Result result = potentially_unsafe()) return result;
  *memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!*memory) return out_of_memory;
  pinned[static_cast<char*>(*memory)] = bytes;
  return success;
}

EXPORT int cuMemFreeHost(void* memory) {
  LOCKED("cuMemFreeHost");
  if (Result result = potentially_unsafe()) return result;
  if (!pinned.erase(static_cast<char*>(memory))) return invalid_value;
  return std::free(memory), success;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t target, const void* source, size_t bytes, void* stream) {
  std::lock_guard<std::recursive_mutex> lock(turn);
  return copy_host("copy from host", address(target), source, bytes, source, stream);
}

EXPORT int cuMemcpyDtoHAsync_v2(void* target, uint64_t source, size_t bytes, void* stream) {
  std::lock_guard<std::recursive_mutex> lock(turn);
  return copy_host("copy to host", target, address(source), bytes, target, stream);
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t bytes, void* stream) {
  LOCKED("copy on device");
  return submit(stream, [=] { return std::memcpy(address(target), address(source), bytes), success; });
}

EXPORT int cuStreamIsCapturing(void* stream, int* status) {
  std::lock_guard<std::recursive_mutex> lock(turn);
  const Capture* capture = capture_on(stream);
  return *status = !capture ? 0 : capture->broken ? 2 : 1, success;
}

EXPORT int cuThreadExchangeStreamCaptureMode(int* mode) {
  const Mode before = thread_mode;
  thread_mode = Mode(*mode);
  return *mode = before, success;
}

EXPORT int cuStreamBeginCapture_v2(void* stream, int mode) {
  LOCKED("cuStreamBeginCapture");
  if (!stream || capture_on(stream)) return invalid_value;
  return captures[stream] = {Mode(mode), {}, success}, success;
}

EXPORT int cuStreamEndCapture(void* stream, void** graph) {
  LOCKED("cuStreamEndCapture");
  Capture* capture = capture_on(stream);
  if (!capture) return invalid_value;
  const Result broken = capture->broken;
  *graph = broken ? nullptr : new Graph(std::move(capture->graph));
  captures.erase(stream);
  return broken ? capture_invalidated : success;
}

EXPORT int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  return *executable = new Graph(*static_cast<Graph*>(graph)), success;
}

EXPORT int cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), success; }
EXPORT int cuGraphExecDestroy(void* executable) { return delete static_cast<Graph*>(executable), success; }

EXPORT int cuGraphLaunch(void* executable, void* stream) {
  LOCKED("cuGraphLaunch");
  return submit(stream, [graph = *static_cast<Graph*>(executable)] { return launch_all(graph); });
}
