// The shared memory of one block: static arrays first, then the dynamic pool; memory without access on both sides.
//
// Every byte is born 0xff, which is NaN in each floating-point format. Bytes that no array owns (behind each static
// array, behind the pool up to the next page) must still be 0xff when the block ends.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace emulator {

constexpr size_t shared_alignment = 1024;  // the largest that a swizzled tensor copy asks for
constexpr size_t shared_limit = 227 << 10;
constexpr size_t static_shared_limit = 48 << 10;
constexpr uint32_t window_start = 0x400;   // where shared memory begins in its 32-bit window: address 0 stays invalid
constexpr unsigned char unborn = 0xff;
constexpr size_t guard_bytes = 1 << 20;    // without access, on either side

// A part of shared memory that no array owns.
struct RedZone {
  size_t begin, bytes;
  const char* behind;  // the array in front of it
};

struct SharedMemory {
  unsigned char* pages = nullptr;
  unsigned char* base = nullptr;
  size_t mapped = 0, bytes = 0, pool = 0;
  std::vector<RedZone> red_zones;
  std::vector<unsigned char> unfenced, arriving, in_use;  // of each byte: see hazards.h

  // Room for `static_bytes` of arrays and a pool of `pool_bytes`; called once for all blocks that an OS thread runs.
  void reserve(size_t static_bytes, size_t pool_bytes, const RedZone* zones, size_t zone_count) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    pool = (static_bytes + shared_alignment - 1) / shared_alignment * shared_alignment;
    bytes = pool + pool_bytes;
    const size_t aligned = (bytes + shared_alignment - 1) / shared_alignment * shared_alignment;
    const size_t inner = (aligned + page - 1) / page * page;
    mapped = inner + 2 * guard_bytes;
    pages = static_cast<unsigned char*>(mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(pages + guard_bytes, inner, PROT_READ | PROT_WRITE);
    base = pages + guard_bytes + inner - aligned;
    red_zones.assign(zones, zones + zone_count);
    red_zones.push_back({bytes, aligned - bytes, "the dynamic pool"});
    for (auto states : {&unfenced, &arriving, &in_use}) states->resize(aligned);
  }

  void release() {
    if (pages) munmap(pages, mapped);
    pages = nullptr;
  }

  void be_born() {
    memset(base, unborn, unfenced.size());
    for (auto states : {&unfenced, &arriving, &in_use}) memset(states->data(), 0, states->size());
  }

  // The array behind whose end a byte was written; null where none was.
  const char* overrun_array() const {
    for (const RedZone& zone : red_zones)
      for (size_t i = 0; i < zone.bytes; ++i)
        if (base[zone.begin + i] != unborn) return zone.behind;
    return nullptr;
  }
};

}  // namespace emulator
