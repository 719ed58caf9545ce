// A driver for tests of the kit: memory is the host's, and a launch writes what it was given to a text file. Compiled
// with the driver's own header, so that every signature is that of the header.

#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

static FILE* said = std::fopen(std::getenv("DRIVER_STUB_OUTPUT"), "w");

#define SAY(...) (std::fprintf(said, __VA_ARGS__), std::fflush(said), CUDA_SUCCESS)

extern "C" {
CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) {
  const char* given = std::getenv("DRIVER_STUB_VERSION");
  return *version = given ? std::atoi(given) : 13000, CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int which) { return *device = which + 5, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
  return std::snprintf(name, size, "stub %d", device), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (device != 5) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return *value = 132, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return *value = 9, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return *value = 0, CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return *context = (CUcontext)0x77, device == 5 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  return context == (CUcontext)0x77 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return *stream = (CUstream)0x1234567890, flags == CU_STREAM_NON_BLOCKING ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
static CUresult on(CUstream stream) {
  return stream == (CUstream)0x1234567890 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuStreamSynchronize(CUstream stream) { return on(stream); }
CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
  return *address = (CUdeviceptr)std::aligned_alloc(256, (size + 255) / 256 * 256), CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr address) { return std::free((void*)address), CUDA_SUCCESS; }
CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t size, CUstream stream) {
  return std::memcpy((void*)target, source, size), on(stream);
}
CUresult cuMemcpyDtoH(void* target, CUdeviceptr source, size_t size) {
  return std::memcpy(target, (void*)source, size), CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char byte, size_t size, CUstream stream) {
  return std::memset((void*)target, byte, size), on(stream);
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  *module = (CUmodule)0xABC;
  return std::strcmp((const char*)image, "code") ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)0xDEF;
  return module != (CUmodule)0xABC ? CUDA_ERROR_INVALID_HANDLE : SAY("function %s\n", name);
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (function != (CUfunction)0xDEF || attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    return CUDA_ERROR_INVALID_VALUE;
  return SAY("shared %d\n", value);
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  if (function != (CUfunction)0xDEF || attribute != CU_FUNC_ATTRIBUTE_NUM_REGS) return CUDA_ERROR_INVALID_VALUE;
  return *value = 168, CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  std::memset(map, 0x5A, sizeof *map);
  SAY("map %d rank %u address %#zx aligned %d:", type, rank, (size_t)address, (size_t)map % 64 == 0);
  for (unsigned i = 0; i < rank; ++i) SAY(" %llu/%u/%u", (unsigned long long)sizes[i], box[i], steps[i]);
  for (unsigned i = 0; i + 1 < rank; ++i) SAY(" %llu", (unsigned long long)strides[i]);
  return SAY(" modes %d %d %d %d\n", interleave, swizzle, promotion, fill);
}
// Launches of the test have these arguments: a pointer, an int32, an int64, a float, a tensor map.
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** values, void** extra) {
  if (function != (CUfunction)0xDEF || extra || on(config->hStream)) return CUDA_ERROR_INVALID_VALUE;
  SAY("launch %u %u %u, %u %u %u, %u bytes:", config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
      config->blockDimY, config->blockDimZ, config->sharedMemBytes);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      SAY(" cluster %u %u %u", attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z);
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
      SAY(" early %d", attribute.value.programmaticStreamSerializationAllowed);
  }
  return SAY(" %#zx %d %lld %g %#x\n", *(size_t*)values[0], *(int*)values[1], *(long long*)values[2],
             *(float*)values[3], ((unsigned char*)values[4])[127]);
}
CUresult cuEventCreate(CUevent* event, unsigned flags) {
  return *event = (CUevent)0x99, flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  return event == (CUevent)0x99 ? on(stream) : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuEventSynchronize(CUevent event) { return event == (CUevent)0x99 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
CUresult cuEventDestroy(CUevent event) { return cuEventSynchronize(event); }
CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return *milliseconds = 2.5f, start == end ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  return mode == CU_STREAM_CAPTURE_MODE_RELAXED ? on(stream) : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) { return *graph = (CUgraph)0x55, on(stream); }
CUresult cuGraphInstantiate(CUgraphExec* made, CUgraph graph, unsigned long long flags) {
  *made = (CUgraphExec)0x66;
  return graph == (CUgraph)0x55 && !flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  return graph == (CUgraphExec)0x66 ? (SAY("graph\n"), on(stream)) : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuGetErrorName(CUresult, const char** name) { return *name = "CUDA_ERROR_OF_STUB", CUDA_SUCCESS; }
}
