// Launches in a capture: the emulated driver keeps their arguments, and calls the entry point again for each replay.
#pragma once
#include <tvm/ffi/c_api.h>

namespace emulator {

// Whether the driver recorded the launch. `maps`: the places of values that are addresses of tensor maps, then -1.
using Recorder = bool (*)(void* entry, const TVMFFIAny* values, int32_t count, const int32_t* maps);
extern Recorder recorder;  // nullptr without a driver

}  // namespace emulator
