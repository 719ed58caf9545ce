#include "early_launch.h"

namespace emulator {

void expect_waited(const char* does) {
  if (!thread->has_waited)
    fail(std::string(does) + " global memory before griddepcontrol.wait, which a kernel before may still write or read");
}

void check_has_waited(const Thread& t) {
  if (!t.has_waited) fail("a thread ends without griddepcontrol.wait: the kernels before may still run then");
}

}  // namespace emulator
