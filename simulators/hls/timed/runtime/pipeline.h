// What moves through the stages of a pipeline. Reads happen in the first one, writes in later ones; both in the cycle in
// which an iteration is in that stage.
//
// - stp: all stages move together or none does. All that is due in a cycle, reads and writes of several iterations, happens
//   when all of it can, so one word that finds no place, or one that is missing, holds back words that are on their way.
// - flp: a stage moves when the next one has room. Words arrive whatever the stages in front of them wait for.
// - frp: the same, and a word that finds no place waits outside of the pipeline, in a queue as long as it.
#pragma once
#include "scheduler.h"
#include "settings.h"

namespace moec_simulation {

inline bool is_pipelined(const Process& me) { return me.nest != no_nest; }

inline uint64_t stage_of(const Channel& channel, int place, int count) {
  const auto& asked = settings().stages;
  const auto found = asked.find(channel.name);
  const uint64_t depth = settings().pipeline_depth;
  if (found == asked.end()) return count < 2 || !depth ? depth : 1 + (depth - 1) * place / (count - 1);
  const uint64_t stage = uint64_t(number(found->second, "stage"));
  if (stage > depth)
    fail(wrong_setting, "channel " + channel.name + ": stage " + found->second + " of " + std::to_string(depth));
  return stage;
}

// A loop's first write is as early as can be and its last one as late; a function that it calls may write in any stage.
inline uint64_t stage_of(const Process& me, const Channel& channel) {
  for (const auto& one : me.written)
    if (one.channel == &channel) return one.stage;
  return stage_of(channel, 0, 1);
}

inline void wait_until(Process& me, uint64_t time, uint64_t& stall) {
  if (time <= me.clock) return;
  stall += time - me.clock;
  me.clock = time;
}

inline void wait_for_place(Process& me, Channel& channel) {
  while (channel.written - channel.read == channel.depth) wait(me, channel, Direction::writes);
  wait_until(me, channel.place_free_at(), me.write_stall);
}

inline void wait_for_places(Process& me) {
  for (const auto& word : me.late) {
    if (word.position > me.position) break;
    wait_for_place(me, *word.channel);
  }
}

// All that is due in this cycle happens.
inline void finish_cycle(Process& me) {
  wait_for_places(me);
  for (; !me.late.empty() && me.late.front().position <= me.position; me.late.pop_front())
    me.late.front().channel->write_at(me.clock);
  for (Channel* channel : me.taken) channel->free_place(me.clock);
  me.taken.clear();
}

inline void move_on(Process& me, uint64_t cycles) {
  me.position += cycles;
  me.clock += cycles;
  me.busy += cycles;
}

// A pipeline that flushes takes an iteration in when the one that is as many stages ahead as it is long has left it.
inline void wait_for_stages(Process& me) {
  if (me.style == Style::stp) return;
  for (const auto& one : me.written) {
    const uint64_t length = 1 + (me.style == Style::frp ? settings().pipeline_depth : one.stage);
    Channel& channel = *one.channel;
    while (!channel.flushed.empty() && channel.flushed.front().iteration + length <= me.iteration)
      wait(me, channel, Direction::writes);
    for (; !channel.arrived.empty() && channel.arrived.front().iteration + length <= me.iteration; channel.arrived.pop_front())
      wait_until(me, channel.arrived.front().time + 1, me.write_stall);
  }
}

// The loop ends when its last iteration has left the last stage.
inline void drain(Process& me) {
  finish_cycle(me);
  const uint64_t end = me.position + settings().pipeline_depth;
  while (!me.late.empty()) {
    move_on(me, me.late.front().position - me.position);
    finish_cycle(me);
  }
  if (me.position < end) move_on(me, end - me.position);
  for (const auto& one : me.written) {
    while (!one.channel->flushed.empty()) wait(me, *one.channel, Direction::writes);
    for (; !one.channel->arrived.empty(); one.channel->arrived.pop_front())
      wait_until(me, one.channel->arrived.front().time, me.write_stall);
  }
  me.written.clear();
}

// A word enters the pipeline, to arrive some stages later.
inline void enter(Process& me, Channel& channel) {
  const uint64_t stage = stage_of(me, channel);
  ++channel.on_their_way;
  if (me.style != Style::stp) {
    channel.flushed.push_back({me.iteration, me.clock + stage});
    channel.settle();
    return;
  }
  uint64_t position = me.position + stage;
  auto place = me.late.end();
  for (auto word = me.late.begin(); word != me.late.end(); ++word)
    if (word->channel == &channel) position = std::max(position, word->position + 1);  // one port
  while (place != me.late.begin() && std::prev(place)->position > position) --place;
  me.late.insert(place, {position, &channel});
}

inline Style style_of(Style declared) {
  const std::string& asked = settings().pipeline_style;
  if (asked.empty()) return declared;
  if (asked == "stp") return Style::stp;
  if (asked == "flp") return Style::flp;
  if (asked == "frp") return Style::frp;
  fail(wrong_setting, "pipeline style " + asked + "; expected stp, frp or flp");
}

void start_iteration(Style style, int initiation_interval, Channel* const* written, int count) {
  Process& me = running("starts an iteration of", "a pipelined loop");
  const bool first = me.iteration++ == me.nest_start;
  if (first) {
    me.style = me.uses_memory ? Style::stp : style_of(style);  // frp supports no m_axi (UG1448)
    for (int i = 0; i < count; ++i) me.written.push_back({written[i], stage_of(*written[i], i, count)});
  }
  for (int i = 0; i < initiation_interval; ++i) {
    finish_cycle(me);
    move_on(me, 1);
  }
  wait_for_stages(me);
  wait_for_places(me);
}

}  // namespace moec_simulation
