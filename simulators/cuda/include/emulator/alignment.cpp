// Accesses at addresses that are no multiple of what their type asks for, which a GPU traps on.
//
// The compiler's check of alignment calls this function before such an access; it stands in for UBSan's own.
#include "scheduler.h"

namespace emulator {

// What the compiler knows of an access, as UBSan lays it out.
struct CheckedAccess {
  const char* file;
  uint32_t line, column;
  const struct {
    uint16_t kind, details;
    char name[1];
  }* type;
  unsigned char alignment_bits, does;
};

}  // namespace emulator

extern "C" EMULATOR_UNWATCHED void __ubsan_handle_type_mismatch_v1(const emulator::CheckedAccess* access,
                                                                   const void* address) {
  if (!emulator::thread) return;
  const uintptr_t alignment = uintptr_t(1) << access->alignment_bits;
  emulator::fail("misaligned access: an address of " + std::string(access->type->name) + " is " +
                 std::to_string(uintptr_t(address) % alignment) + " bytes behind a multiple of " +
                 std::to_string(alignment));
}
