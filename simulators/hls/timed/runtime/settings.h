// What a run is asked for, in environment variables: one build serves all depths and bandwidths.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "faults.h"

namespace moec_simulation {

struct Settings {
  double beat_cycles;                           // between two beats of a port of the memory
  double total_beat_cycles;                     // between two beats of any ports
  uint64_t memory_latency;                      // cycles until the first beat of a memory's loop
  uint64_t pipeline_depth;                      // stages of a pipeline behind its first
  std::string pipeline_style;                   // of all pipelines; as they declare it where it is empty
  std::map<std::string, std::string> stages;    // in which a channel is written, by its name
  std::map<std::string, std::string> depths;    // of a channel by its name, or of all by *
  std::map<std::string, std::string> memories;  // that a bundle is connected to; one of its own by default
  std::string report;                           // path of a file that gets a line of JSON per run of a region
};

inline std::string variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

inline double number(const std::string& text, const char* of_what) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(value >= 0)) fail(wrong_setting, std::string(of_what) + ": " + text + " is no number");
  return value;
}

// "a=1,b=2" as a map.
inline std::map<std::string, std::string> pairs(const std::string& text) {
  std::map<std::string, std::string> found;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    const std::string pair = text.substr(start, end - start);
    const size_t equals = pair.find('=');
    if (equals == std::string::npos) fail(wrong_setting, "expected name=value, found " + pair);
    found[pair.substr(0, equals)] = pair.substr(equals + 1);
    start = end + 1;
  }
  return found;
}

inline const Settings& settings() {
  static const Settings read = {
      number(variable("MOEC_BEAT_CYCLES", "1"), "MOEC_BEAT_CYCLES"),
      number(variable("MOEC_TOTAL_BEAT_CYCLES", "0"), "MOEC_TOTAL_BEAT_CYCLES"),
      uint64_t(number(variable("MOEC_MEMORY_LATENCY", "0"), "MOEC_MEMORY_LATENCY")),
      uint64_t(number(variable("MOEC_PIPELINE_DEPTH", "0"), "MOEC_PIPELINE_DEPTH")),
      variable("MOEC_PIPELINE_STYLE", ""),
      pairs(variable("MOEC_STAGES", "")),
      pairs(variable("MOEC_CHANNEL_DEPTHS", "")),
      pairs(variable("MOEC_MEMORIES", "")),
      variable("MOEC_REPORT", ""),
  };
  return read;
}

}  // namespace moec_simulation
