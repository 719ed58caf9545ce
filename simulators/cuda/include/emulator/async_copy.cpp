#include "async_copy.h"

namespace emulator {

static void move_bytes(const Copy& copy) {
  unsigned char* destination = from_window(copy.destination, copy.bytes, "cp.async");
  memcpy(destination, copy.source, copy.read_bytes);
  memset(destination + copy.read_bytes, 0, copy.bytes - copy.read_bytes);
}

void complete(const Copy& copy, Thread& owner) {
  const size_t offset = offset_of(from_window(copy.destination, copy.bytes, "cp.async"));
  if (!settings.copies_complete_early) move_bytes(copy);
  end_arriving(offset, copy.bytes);
  note_written(owner, offset, copy.bytes);
}

void issue_copy(uint32_t destination, const void* source, uint32_t bytes, uint32_t read_bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes, not " + std::to_string(bytes));
  if (read_bytes > bytes)
    fail("cp.async reads " + std::to_string(read_bytes) + " of " + std::to_string(bytes) + " bytes");
  expect_aligned(destination, bytes, "cp.async");
  if (uintptr_t(source) % bytes) fail("cp.async: the global address is no multiple of " + std::to_string(bytes));
  expect_waited("cp.async reads");
  const Copy copy{destination, source, bytes, read_bytes, thread->copies.group};
  if (watched) note_global(source, read_bytes, note_block_reads);
  begin_arriving(offset_of(from_window(destination, bytes, "cp.async")), bytes, "cp.async");
  if (settings.copies_complete_early) move_bytes(copy);
  thread->copies.pending.push_back(copy);
}

void complete_copies_before(int group, Thread& owner) {
  auto& pending = owner.copies.pending;
  size_t done = 0;
  while (done < pending.size() && pending[done].group < group) complete(pending[done++], owner);
  pending.erase(pending.begin(), pending.begin() + long(done));
}

}  // namespace emulator
