// Stacks for the threads of a block, each with a page without access below it.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

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

// Stacks that are kept from launch to launch: making them takes longer than running a small kernel.
class BorrowedStacks {
 public:
  explicit BorrowedStacks(size_t count) {
    const std::lock_guard<std::mutex> lock(guard_);
    for (auto& idle : idle_)
      if (idle && idle->count() >= count) {
        stacks_ = std::move(idle);
        return;
      }
    stacks_ = std::make_unique<Stacks>(count);
  }
  ~BorrowedStacks() {
    const std::lock_guard<std::mutex> lock(guard_);
    for (auto& idle : idle_)
      if (!idle || idle->count() < stacks_->count()) {
        idle = std::move(stacks_);
        return;
      }
    if (idle_.size() < most_kept) idle_.push_back(std::move(stacks_));
  }

  Stacks& stacks() const { return *stacks_; }

 private:
  static constexpr size_t most_kept = 64;
  static inline std::mutex guard_;
  static inline std::vector<std::unique_ptr<Stacks>> idle_;
  std::unique_ptr<Stacks> stacks_;
};

}  // namespace emulator
