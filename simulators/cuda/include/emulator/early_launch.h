// Kernels that are launched before those before them have ended (griddepcontrol, PTX ISA).
//
// The emulator runs one kernel after another, so it holds every thread to the rule instead: what lies in global memory
// may still be written or read by a kernel before, until the thread has waited. A kernel of which a thread does not wait
// may end before those before it have, and then so may all that comes next.
#pragma once
#include "block.h"

namespace emulator {

inline void wait_for_kernels_before() { thread->has_waited = true; }

void expect_waited(const char* does);

void check_has_waited(const Thread& t);

}  // namespace emulator
