// Stacks for fibers. Below each are bytes without access; what is never used takes no memory.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <stdexcept>

namespace fibers {

class Stacks {
 public:
  // `bytes_each`: whole pages, of which the lowest `guard_bytes`, rounded up to whole pages, cannot be accessed.
  Stacks(size_t count, size_t bytes_each, size_t guard_bytes) : bytes_(count * bytes_each), bytes_each_(bytes_each) {
    memory_ = static_cast<unsigned char*>(
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) throw std::runtime_error("no memory for the stacks of its fibers");
    for (size_t i = 0; i < count; ++i) mprotect((*this)[i], guard_bytes, PROT_NONE);
  }
  ~Stacks() { munmap(memory_, bytes_); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  unsigned char* operator[](size_t i) { return memory_ + i * bytes_each_; }

 private:
  unsigned char* memory_;
  size_t bytes_, bytes_each_;
};

}  // namespace fibers
