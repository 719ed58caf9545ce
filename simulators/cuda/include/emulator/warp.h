// Instructions that lanes of a warp carry out together.
#pragma once
#include <cstring>

#include "order.h"
#include "scheduler.h"

namespace emulator {

std::string hexadecimal(uint32_t value);

Meeting& join_meeting(Warp& warp, const char* instruction, uint32_t mask, void (*carry_out)(Meeting&));

// Carries the instruction out once every lane has arrived that is named and has not exited.
bool hold_if_complete(int warp_index, size_t which);

// Brings `argument` together with those of the other lanes in `mask`. `carry_out` sees them all.
template <class Argument>
void meet(const char* instruction, uint32_t mask, Argument& argument, void (*carry_out)(Meeting&)) {
  if (!(mask >> thread->lane & 1))
    fail(std::string(instruction) + ": lane " + std::to_string(thread->lane) + " is not in its own mask " +
         hexadecimal(mask));
  Warp& warp = block->warps[thread->warp];
  Meeting& meeting = join_meeting(warp, instruction, mask, carry_out);
  meeting.arrived |= 1u << thread->lane;
  meeting.arguments[thread->lane] = &argument;
  if (!hold_if_complete(thread->warp, size_t(&meeting - warp.meetings.data())))
    wait(State::waiting, instruction, &warp);
}

template <class Argument>
Argument& argument_of(Meeting& meeting, int lane) {
  return *static_cast<Argument*>(meeting.arguments[lane]);
}

// For instructions that are defined only where all 32 lanes carry them out.
void expect_whole_warp(const Meeting& meeting);

}  // namespace emulator
