// Calls of kernels through TVM FFI: the values of the arguments, then those of the launch, as TVM's host code gives
// them.
#pragma once
#include <tvm/ffi/c_api.h>

#include <initializer_list>
#include <type_traits>

#include "launch.h"

namespace emulator {

template <class Value>
Value number(const TVMFFIAny& value) {
  if (value.type_index == kTVMFFIInt || value.type_index == kTVMFFIBool) return Value(value.v_int64);
  if (value.type_index == kTVMFFIFloat) return Value(value.v_float64);
  throw std::invalid_argument("expects a number, got a value of TVM FFI type " + std::to_string(value.type_index));
}

void* address(const TVMFFIAny& value);

// One argument of a kernel: an address, a number, or a structure that host code gives the address of.
template <class Type>
Type argument(const TVMFFIAny& value) {
  if constexpr (std::is_pointer_v<Type>) return static_cast<Type>(address(value));
  else if constexpr (std::is_arithmetic_v<Type>) return number<Type>(value);
  else return *static_cast<const Type*>(address(value));
}

Shape shape_of(std::initializer_list<const char*> tags, const TVMFFIAny* values);

// Runs `body`; its exception becomes the error of the FFI call, with the kernel's name.
template <class Body>
int32_t call(const char* kernel, Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    const std::string message = std::string("emulated kernel ") + kernel + ": " + error.what();
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", message.c_str());
    return -1;
  }
}

void expect_count(int32_t given, int32_t expected);

}  // namespace emulator
