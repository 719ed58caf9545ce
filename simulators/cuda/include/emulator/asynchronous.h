// Operations that complete some time after they were issued: how a block begins without any, and which is next.
#pragma once
#include "registers.h"

namespace emulator {

bool complete_something();

void reset_asynchronous_state(Block& b);

// What a thread leaves behind must not need it any longer.
void check_left_behind(const Thread& t);

// Where the last thread of a block has ended. Of a warp group some warps may have issued what others did not.
void check_left_behind();

}  // namespace emulator
