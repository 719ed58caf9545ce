// The shared memory of one block: static arrays first, then the dynamic pool; memory without access on both sides.
//
// The pool is aligned as its declaration says and no better, whatever a GPU would happen to do.
//
// Every byte is born 0xff, which is NaN in each floating-point format. Bytes that no array owns (behind each static
// array, behind the pool up to the next page) must still be 0xff when the block ends.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace emulator {

constexpr size_t shared_alignment = 1024;  // the largest that a swizzled tensor copy asks for
constexpr size_t static_shared_limit = 48 << 10;
constexpr uint32_t window_start = 0x400;   // of the 32-bit window: address 0 stays invalid
constexpr unsigned char unborn = 0xff;
constexpr size_t guard_bytes = 1 << 20;    // without access, on either side

// A part of shared memory that no array owns.
struct RedZone {
  size_t begin, bytes;
  const char* behind;  // the array in front of it
};

struct SharedMemory {
  unsigned char* pages = nullptr;  // the guarded memory, as threads see it
  unsigned char* base = nullptr;
  unsigned char* own = nullptr;    // the same bytes as `base`, at the address that the emulator itself goes by
  unsigned char* own_pages = nullptr;
  size_t mapped = 0, usable = 0, bytes = 0, pool = 0;
  uint32_t window = 0;             // the address of the first byte in the window
  std::vector<RedZone> red_zones;
  std::vector<unsigned char> unfenced, arriving, in_use;  // of each byte: see hazards.h

  // Room for `static_bytes` of arrays and a pool of `pool_bytes`; called once for all blocks that an OS thread runs.
  void reserve(size_t static_bytes, size_t pool_bytes, size_t alignment, const std::vector<RedZone>& arrays) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    // Where there are no arrays the pool itself comes first.
    const size_t first = static_bytes ? 0 : alignment;
    pool = static_bytes ? behind(static_bytes, alignment) : 0;
    bytes = pool + pool_bytes;
    window = window_start + uint32_t(first);
    const size_t aligned = (first + bytes + shared_alignment - 1) / shared_alignment * shared_alignment - first;
    const size_t inner = std::max(page, (aligned + page - 1) / page * page);  // no mapping can be empty
    mapped = inner + 2 * guard_bytes;
    usable = inner;
    pages = map(mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, nullptr, -1);
    const int file = memfd_create("emulated shared memory", 0);
    if (file < 0 || ftruncate(file, off_t(inner))) throw std::runtime_error("no memory for its shared memory");
    map(inner, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, pages + guard_bytes, file);
    own_pages = map(inner, PROT_READ | PROT_WRITE, MAP_SHARED, nullptr, file);
    close(file);
    base = pages + guard_bytes + inner - aligned;
    own = own_pages + inner - aligned;
    red_zones = arrays;
    red_zones.push_back({static_bytes, pool - static_bytes, "the static arrays"});
    red_zones.push_back({bytes, aligned - bytes, "the dynamic pool"});
    for (auto states : {&unfenced, &arriving, &in_use}) states->resize(aligned);
  }

  // The first odd multiple of `alignment` behind the static arrays: no multiple of twice as much.
  static size_t behind(size_t static_bytes, size_t alignment) {
    const size_t multiple = (static_bytes + alignment - 1) / alignment;
    return (multiple + 1 - multiple % 2) * alignment;
  }

  static unsigned char* map(size_t bytes, int protection, int flags, void* at, int file) {
    void* memory = mmap(at, bytes, protection, flags, file, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for its shared memory");
    return static_cast<unsigned char*>(memory);
  }

  void release() {
    if (pages) munmap(pages, mapped);
    if (own_pages) munmap(own_pages, usable);
    pages = own_pages = nullptr;
  }

  void be_born() {
    memset(own, unborn, unfenced.size());
    for (auto states : {&unfenced, &arriving, &in_use}) memset(states->data(), 0, states->size());
  }

  // The array behind whose end a byte was written; null where none was.
  const char* overrun_array() const {
    for (const RedZone& zone : red_zones)
      for (size_t i = 0; i < zone.bytes; ++i)
        if (own[zone.begin + i] != unborn) return zone.behind;
    return nullptr;
  }
};

}  // namespace emulator
