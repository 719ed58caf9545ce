// How a simulation ends early.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <string>

namespace moec_simulation {

// Exit codes; moec.simulators.hls.simulator knows what they stand for.
enum Fault { deadlock = 42, false_dependence = 43, outside_of_memory = 44, misused_channel = 45, wrong_setting = 46 };

[[noreturn]] inline void fail(Fault fault, const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", message.c_str());
  std::fflush(stderr);
  std::_Exit(fault);
}

}  // namespace moec_simulation
