#include "recorder.h"

#include "call.h"

namespace emulator {

Recorder recorder = nullptr;

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) int32_t __tvm_ffi_record_by(
    void*, const TVMFFIAny* values, int32_t count, TVMFFIAny* result) {
  *result = TVMFFIAny{};
  return emulator::call("record_by", [=] {
    emulator::expect_count(count, 1);
    emulator::recorder = reinterpret_cast<emulator::Recorder>(emulator::address(values[0]));
  });
}
