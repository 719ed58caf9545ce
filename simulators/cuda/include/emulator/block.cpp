#include "block.h"

namespace emulator {

[[noreturn]] void fail(const std::string& what) {
  Cluster& cluster = *block->cluster;
  cluster.error = what;
  fibers::Context abandoned;
  fibers::switch_context(abandoned, cluster.scheduler);
  __builtin_unreachable();
}

}  // namespace emulator
