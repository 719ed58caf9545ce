#include "call.h"

namespace emulator {

void* address(const TVMFFIAny& value) {
  if (value.type_index == kTVMFFINone) return nullptr;
  if (value.type_index == kTVMFFIOpaquePtr) return value.v_ptr;
  throw std::invalid_argument("expects an address, got a value of TVM FFI type " + std::to_string(value.type_index));
}

static void set_extent(Shape& shape, const std::string& tag, const TVMFFIAny& value) {
  const int64_t extent = number<int64_t>(value);
  if (extent < 0 || extent > 0xffffffffLL)
    throw std::invalid_argument("cannot be launched: " + tag + " is " + std::to_string(extent));
  if (tag == "tirx.use_dyn_shared_memory") {
    shape.dynamic_bytes = size_t(extent);
    return;
  }
  dim3& whole = tag[0] == 'c' ? shape.cluster : tag[0] == 'b' ? shape.grid : shape.block;
  (tag.back() == 'x' ? whole.x : tag.back() == 'y' ? whole.y : whole.z) = unsigned(extent);
}

Shape shape_of(std::initializer_list<const char*> tags, const TVMFFIAny* values) {
  Shape shape;
  for (const char* tag : tags) set_extent(shape, tag, *values++);
  return shape;
}

void expect_count(int32_t given, int32_t expected) {
  if (given != expected)
    throw std::invalid_argument("expects " + std::to_string(expected) + " values (arguments and launch), got " +
                                std::to_string(given));
}

}  // namespace emulator

// Which warps fall behind from now on, and the seed of the order.
extern "C" __attribute__((visibility("default"))) int32_t __tvm_ffi_schedule_threads(
    void*, const TVMFFIAny* values, int32_t count, TVMFFIAny* result) {
  *result = TVMFFIAny{};
  return emulator::call("schedule_threads", [=] {
    emulator::expect_count(count, 2);
    emulator::schedule = {emulator::number<uint32_t>(values[0]), emulator::number<uint32_t>(values[1])};
  });
}
