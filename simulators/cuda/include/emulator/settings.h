// What is said of a library when it is linked, so that what was compiled once serves with all of them.
#pragma once
#include <cstddef>

namespace emulator {

struct Settings {
  size_t first_thread;  // where a block starts
  size_t shared_limit;  // bytes of shared memory that a block of the architecture may have
  // When what was issued can be seen: at once, or at the last moment that the hardware allows.
  bool copies_complete_early, products_complete_early;
};

extern const Settings settings;

}  // namespace emulator
