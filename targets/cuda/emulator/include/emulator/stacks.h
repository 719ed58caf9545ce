// Stacks for the threads of a block, each with a page without access below it.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>

#include "block.h"

namespace emulator {

class Stacks {
 public:
  explicit Stacks(size_t count) : count_(count) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    pages_ = static_cast<unsigned char*>(mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (pages_ == MAP_FAILED) throw std::runtime_error("no memory for the stacks of its threads");
    for (size_t i = 0; i < count; ++i) mprotect(pages_ + i * stack_bytes, page, PROT_NONE);
  }
  ~Stacks() { munmap(pages_, count_ * stack_bytes); }
  Stacks(const Stacks&) = delete;

  size_t count() const { return count_; }
  unsigned char* operator[](size_t i) { return pages_ + i * stack_bytes; }

 private:
  unsigned char* pages_;
  size_t count_;
};

}  // namespace emulator
