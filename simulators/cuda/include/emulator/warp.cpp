#include "warp.h"

namespace emulator {

std::string hexadecimal(uint32_t value) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", value);
  return text;
}

Meeting& join_meeting(Warp& warp, const char* instruction, uint32_t mask, void (*carry_out)(Meeting&)) {
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

bool hold_if_complete(int warp_index, size_t which) {
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

void expect_whole_warp(const Meeting& meeting) {
  if (meeting.arrived != all_lanes)
    fail(std::string(meeting.instruction) + ": needs 32 lanes, lanes " + hexadecimal(meeting.arrived) +
         " carry it out");
}

}  // namespace emulator
