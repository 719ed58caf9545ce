// Instructions that lanes of a warp carry out together.
#pragma once
#include <cstring>

#include "order.h"
#include "scheduler.h"

namespace emulator {

inline std::string hexadecimal(uint32_t value) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", value);
  return text;
}

inline Meeting& join_meeting(Warp& warp, const char* instruction, uint32_t mask, void (*carry_out)(Meeting&)) {
  for (Meeting& meeting : warp.meetings) {
    if (!(meeting.mask & mask)) continue;
    if (meeting.mask != mask)
      fail(std::string(instruction) + ": lanes of one warp name different lanes: " + hexadecimal(meeting.mask) +
           " and " + hexadecimal(mask));
    if (strcmp(meeting.instruction, instruction))
      fail(std::string("lanes of one warp diverged: some are at ") + meeting.instruction + ", some at " + instruction);
    return meeting;
  }
  warp.meetings.push_back({instruction, mask, 0, {}, carry_out});
  return warp.meetings.back();
}

// Carries the instruction out once every lane has arrived that is named and has not exited.
inline bool hold_if_complete(int warp_index, size_t which) {
  Warp& warp = block->warps[warp_index];
  Meeting meeting = warp.meetings[which];
  if (meeting.arrived != (meeting.mask & warp.live)) return false;
  warp.meetings.erase(warp.meetings.begin() + long(which));
  ++block->cluster->progress;
  meeting.carry_out(meeting);
  for (int lane = 0; lane < warp_size; ++lane)
    if (meeting.arrived >> lane & 1) {
      Thread& t = block->threads[size_t(warp_index) * warp_size + lane];
      if (t.state == State::waiting) make_ready(t);
    }
  return true;
}

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
inline void expect_whole_warp(const Meeting& meeting) {
  if (meeting.arrived != all_lanes)
    fail(std::string(meeting.instruction) + ": needs 32 lanes, lanes " + hexadecimal(meeting.arrived) +
         " carry it out");
}

}  // namespace emulator
