// The processes of a region and their clocks.
#pragma once
#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "../../../fibers/context.h"
#include "../simulation.h"
#include "faults.h"

namespace moec_simulation {

enum class State { ready, polling, waiting, finished };
enum class Direction { reads, writes };

// An array that a pragma DEPENDENCE speaks of.
struct Independent {
  std::string name;
  uintptr_t start;
  size_t bytes, element;
  uint64_t distance;
  uint64_t nest;                 // the last execution of loops that had the pragma
  std::vector<uint64_t> writes;  // by element: the iteration that wrote it last; 0 for none
};

constexpr uint64_t no_nest = 0;

struct Process {
  std::string name;
  std::string arguments;  // channels and ports that it is called with
  std::function<void()> body;
  State state = State::ready;
  uint64_t clock = 0;
  uint64_t resumes_at = 0;  // not before this cycle; `clock` follows when it runs
  uint64_t busy = 0, read_stall = 0, write_stall = 0, memory_stall = 0;
  Channel* waits_on = nullptr;
  Direction waits_to = Direction::reads;

  uint64_t iteration = 0;    // of all pipelined loops so far
  uint64_t nest = no_nest;   // the execution of loops that it is in
  uint64_t nest_start = 0;   // iterations before it
  uint64_t nests = 0;        // so far
  std::vector<Independent> independents;

  // The pipeline of the loop that it is in.
  bool uses_memory = false;
  Style style = Style::stp;
  uint64_t position = 0;     // cycles in which it moved; a frozen pipeline stays where it is
  struct Written {
    Channel* channel;
    uint64_t stage;
  };
  std::vector<Written> written;  // by this loop
  struct Late {
    uint64_t position;           // in which the word arrives
    Channel* channel;
  };
  std::deque<Late> late;         // words of a pipeline that stalls, by their positions
  std::vector<size_t> ports;     // that it is called with; all, until it uses one
  std::vector<Channel*> taken;   // read by this iteration; places become free when all of the iteration has happened

  fibers::Context context;

  uint64_t next() const { return std::max(clock, resumes_at); }
};

struct Port {
  std::string bundle, name;
  uintptr_t start;
  uint64_t bytes;
  size_t bank;
};

struct Bank {
  std::string name;
  double free_at = 0;  // cycle from which the next beat can start
  int ports = 0;
};

struct Scheduler {
  std::vector<std::unique_ptr<Process>> processes;
  std::vector<Port> ports;
  std::vector<Bank> banks;
  double memory_free_at = 0;  // cycle from which the next beat of any of them can start
  Process* running = nullptr;
  fibers::Context caller;
  uint64_t polls = 0;  // in a row, without a word having moved meanwhile
};

// What regions of a call have in common, and what is known of those that have run.
struct CallState {
  std::vector<Port> ports;
  std::vector<Bank> banks;
  uint64_t cycles = 0;
  std::string regions;          // as JSON
  std::set<std::string> names;  // of their channels
};

inline std::unique_ptr<Scheduler> scheduler;   // while there is a region
inline std::unique_ptr<CallState> call;        // while there is one around regions
inline std::vector<Channel*> channels;         // that exist

// The process that calls, which `does` something with `what`.
inline Process& running(const char* does, const std::string& what) {
  if (!scheduler || !scheduler->running)
    fail(misused_channel, std::string("the code around the DATAFLOW region ") + does + " " + what +
                              ": the timed simulation knows the time of processes only");
  return *scheduler->running;
}

}  // namespace moec_simulation
