#include "warp_votes.h"

namespace emulator {

// The lane that `lane` reads from; its own where the shuffle leaves the segment of `width` lanes.
static int shuffle_source(const ShuffleArgument& a, int lane) {
  const int segment = lane / a.width * a.width, place = lane % a.width;
  switch (a.kind) {
    case Shuffle::from_lane: return segment + (a.offset & (a.width - 1));
    case Shuffle::from_above: return place + a.offset < a.width ? lane + a.offset : lane;
    case Shuffle::from_below: return place >= a.offset ? lane - a.offset : lane;
    default: return (lane ^ a.offset) < segment + a.width ? lane ^ a.offset : lane;  // segments below may be read
  }
}

void shuffle_lanes(Meeting& meeting) {
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(meeting.arrived >> lane & 1)) continue;
    auto& mine = argument_of<ShuffleArgument>(meeting, lane);
    const int source = shuffle_source(mine, lane);
    // What a lane outside the mask would give is undefined: all bits set is NaN, so that using it shows.
    const bool given = meeting.arrived >> source & 1;
    if (given) memcpy(mine.result, argument_of<ShuffleArgument>(meeting, source).value, mine.bytes);
    else memset(mine.result, 0xff, mine.bytes);
  }
}

uint32_t vote(uint32_t mask, bool predicate) {
  VoteArgument argument{predicate, 0};
  meet("a warp vote", mask, argument, [](Meeting& meeting) {
    combine_lanes(meeting, [](uint64_t all, uint64_t mine, int lane, bool) { return all | mine << lane; });
  });
  return uint32_t(argument.result);
}

// What the lanes of a mask did before is known to all of them.
static void order_lanes(Meeting& meeting) {
  order_together(size_t(thread->warp) * warp_size, warp_size, [&](size_t lane) { return meeting.arrived >> lane & 1; });
}

uint32_t lanes_running_together(int line) {
  wait(State::converging, "__activemask", reinterpret_cast<const void*>(intptr_t(line)));
  return thread->converged;
}

}  // namespace emulator

void __syncwarp(unsigned mask) {
  int nothing = 0;
  emulator::meet("__syncwarp", mask, nothing, emulator::order_lanes);
}
