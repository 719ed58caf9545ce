// What lanes of a warp tell one another: shuffles, votes, reductions, who runs with whom.
#pragma once
#include <cstring>

#include "warp.h"

namespace emulator {

enum class Shuffle { from_lane, from_above, from_below, across };

struct ShuffleArgument {
  const void* value;
  void* result;
  size_t bytes;
  Shuffle kind;
  int offset, width;
};

void shuffle_lanes(Meeting& meeting);

template <class Value>
Value shuffle(uint32_t mask, Value value, Shuffle kind, int offset, int width) {
  if (width < 1 || width > warp_size || width & (width - 1))
    fail("a shuffle's width is a power of two up to 32, not " + std::to_string(width));
  Value result;
  ShuffleArgument argument{&value, &result, sizeof(Value), kind, offset, width};
  meet("a warp shuffle", mask, argument, shuffle_lanes);
  return result;
}

struct VoteArgument {
  uint64_t value;
  uint64_t result;
};

// The result of a vote or reduction is the same in every lane of the mask.
template <class Combine>
void combine_lanes(Meeting& meeting, Combine combine) {
  uint64_t result = 0;
  bool first = true;
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(meeting.arrived >> lane & 1)) continue;
    result = combine(result, argument_of<VoteArgument>(meeting, lane).value, lane, first);
    first = false;
  }
  for (int lane = 0; lane < warp_size; ++lane)
    if (meeting.arrived >> lane & 1) argument_of<VoteArgument>(meeting, lane).result = result;
}

uint32_t vote(uint32_t mask, bool predicate);

template <class Value, Value (*combine)(Value, Value)>
Value reduce(uint32_t mask, Value value) {
  VoteArgument argument{uint64_t(value), 0};
  meet("a warp reduction", mask, argument, [](Meeting& meeting) {
    combine_lanes(meeting, [](uint64_t all, uint64_t mine, int, bool first) {
      return first ? mine : uint64_t(combine(Value(all), Value(mine)));
    });
  });
  return Value(argument.result);
}

uint32_t lanes_running_together(int line);

// elect.sync: one lane, here the lowest, is told that it was chosen.
inline bool elect(uint32_t mask) { return thread->lane == __builtin_ctz(vote(mask, true)); }

template <class Value> Value add(Value a, Value b) { return Value(a + b); }
template <class Value> Value smaller(Value a, Value b) { return b < a ? b : a; }
template <class Value> Value larger(Value a, Value b) { return a < b ? b : a; }
template <class Value> Value all_bits(Value a, Value b) { return Value(a & b); }
template <class Value> Value any_bits(Value a, Value b) { return Value(a | b); }
template <class Value> Value odd_bits(Value a, Value b) { return Value(a ^ b); }

}  // namespace emulator

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int lane, int width = 32) {
  return emulator::shuffle(mask, value, emulator::Shuffle::from_lane, lane, width);
}
template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, int offset, int width = 32) {
  return emulator::shuffle(mask, value, emulator::Shuffle::from_above, offset, width);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, int offset, int width = 32) {
  return emulator::shuffle(mask, value, emulator::Shuffle::from_below, offset, width);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes, int width = 32) {
  return emulator::shuffle(mask, value, emulator::Shuffle::across, lanes, width);
}
inline unsigned __activemask(int line = __builtin_LINE()) { return emulator::lanes_running_together(line); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::vote(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return emulator::vote(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulator::vote(mask, predicate == 0) == 0; }
void __syncwarp(unsigned mask = emulator::all_lanes);

#define EMULATOR_REDUCTION(name, combine, Value) \
  inline Value name(unsigned mask, Value value) {         \
    return emulator::reduce<Value, emulator::combine<Value>>(mask, value); \
  }
EMULATOR_REDUCTION(__reduce_add_sync, add, int)
EMULATOR_REDUCTION(__reduce_add_sync, add, unsigned)
EMULATOR_REDUCTION(__reduce_min_sync, smaller, int)
EMULATOR_REDUCTION(__reduce_min_sync, smaller, unsigned)
EMULATOR_REDUCTION(__reduce_max_sync, larger, int)
EMULATOR_REDUCTION(__reduce_max_sync, larger, unsigned)
EMULATOR_REDUCTION(__reduce_and_sync, all_bits, unsigned)
EMULATOR_REDUCTION(__reduce_or_sync, any_bits, unsigned)
EMULATOR_REDUCTION(__reduce_xor_sync, odd_bits, unsigned)
#undef EMULATOR_REDUCTION
