#include "order.h"

namespace emulator {

uint32_t* clock_of(const Thread& t) {
  Cluster& cluster = *t.home->cluster;
  return &cluster.clocks[size_t(t.number) * cluster.threads()];
}

void release(const Thread& t, Released& released) {
  if (!watched) return;
  const size_t count = t.home->cluster->threads();
  uint32_t* clock = clock_of(t);
  released.resize(count);
  for (size_t i = 0; i < count; ++i) released[i] = std::max(released[i], clock[i]);
  ++clock[t.number];
}

void add_to(Released& released, const Released& more) {
  released.resize(std::max(released.size(), more.size()));
  for (size_t i = 0; i < more.size(); ++i) released[i] = std::max(released[i], more[i]);
}

void acquire(const Thread& t, const Released& released) {
  if (!watched) return;
  uint32_t* clock = clock_of(t);
  for (size_t i = 0; i < released.size(); ++i) clock[i] = std::max(clock[i], released[i]);
}

void start_clocks(Cluster& cluster) {
  if (!watched) return;
  const size_t count = cluster.threads();
  cluster.clocks.assign(count * count, 0);
  for (size_t i = 0; i < count; ++i) cluster.clocks[i * count + i] = 1;
}

}  // namespace emulator
