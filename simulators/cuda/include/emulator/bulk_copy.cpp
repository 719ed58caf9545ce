#include "bulk_copy.h"

namespace emulator {

static uint32_t box_bytes(const CUtensorMap& map) {
  uint32_t bytes = map.element_bytes;
  for (uint32_t i = 0; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}

// Moves bytes between shared and global memory; bytes outside of the tensor are zeros.
static void move_chunk(const BulkCopy& copy, uint32_t address, unsigned char* global, uint32_t bytes) {
  unsigned char* shared = from_window(address, bytes, "a bulk copy");
  if (!copy.loads) {
    if (global) memcpy(global, shared, bytes);
  } else if (global) {
    memcpy(shared, global, bytes);
  } else {
    memset(shared, 0, bytes);
  }
}

// Where row `row` of the box begins in global memory; null where it lies outside of the tensor.
static unsigned char* row_address(const BulkCopy& copy, uint32_t row) {
  const CUtensorMap& map = copy.map;
  int64_t offset = 0;
  for (uint32_t i = 1; i < map.rank; ++i) {
    const int64_t index = copy.gathers ? copy.start[1 + row] : int64_t(copy.start[i]) + row % map.box[i];
    row /= map.box[i];
    if (index < 0 || index >= int64_t(map.extents[i])) return nullptr;
    offset += index * int64_t(map.strides[i - 1]);
  }
  return reinterpret_cast<unsigned char*>(map.address) + offset;
}

// The box lies dense in shared memory, innermost dimension first, its 16-byte chunks swizzled.
static void move_box(const BulkCopy& copy) {
  const CUtensorMap& map = copy.map;
  const uint32_t row_bytes = map.box[0] * map.element_bytes, rows = copy.bytes / row_bytes;
  const int64_t extent = int64_t(map.extents[0]);
  for (uint32_t row = 0; row < rows; ++row) {
    unsigned char* global = row_address(copy, row);
    for (uint32_t i = 0; i < map.box[0]; ++i) {
      const uint32_t at = swizzled(copy.shared + row * row_bytes + i * map.element_bytes, map.swizzle);
      const int64_t column = int64_t(copy.start[0]) + i;
      const bool inside = global && column >= 0 && column < extent;
      move_chunk(copy, at, inside ? global + column * map.element_bytes : nullptr, map.element_bytes);
    }
  }
}

void carry_out(const BulkCopy& copy) {
  if (copy.tiled) move_box(copy);
  else move_chunk(copy, copy.shared, copy.global, copy.bytes);
}

// The box is dense, so that the bytes it takes in shared memory follow one another, swizzled or not.
static size_t first_byte(const BulkCopy& copy) {
  return offset_of(from_window(copy.shared, copy.bytes, "a bulk copy"));
}

void complete_load(const BulkCopy& copy) {
  carry_out(copy);
  end_arriving(first_byte(copy), copy.bytes);
  note_written_by_proxy(first_byte(copy), copy.bytes);
  in_block_of(copy.barrier, "a bulk copy", [&](uint32_t local) { complete_bytes(local, copy.bytes); });
}

static void complete_store(const BulkCopy& copy) {
  if (!settings.copies_complete_early) carry_out(copy);
  end_use(first_byte(copy), copy.bytes);
}

static void issue_load(const BulkCopy& copy) {
  in_block_of(copy.barrier, "a bulk copy", [](uint32_t local) { expect_published(local, "a bulk copy"); });
  begin_arriving(first_byte(copy), copy.bytes, "a bulk copy");
  if (settings.copies_complete_early) complete_load(copy);
  else block->bulk_copies.push_back(copy);
}

static void issue_store(const BulkCopy& copy) {
  expect_fenced(first_byte(copy), copy.bytes, "a bulk store");
  begin_use(first_byte(copy), copy.bytes, "a bulk store");
  if (settings.copies_complete_early) carry_out(copy);
  block->bulk_copies.push_back(copy);
}

static void issue_bulk_copy(const BulkCopy& copy) {
  expect_waited("a bulk copy reaches");
  expect_aligned(copy.shared, copy.tiled ? 128 : 16, "a bulk copy");
  if (!copy.tiled && (copy.bytes % 16 || uintptr_t(copy.global) % 16))
    fail("a bulk copy moves multiples of 16 bytes from and to multiples of 16");
  if (copy.loads) issue_load(copy);
  else issue_store(copy);
}

static BulkCopy tensor_copy(const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t shared) {
  BulkCopy copy = {};
  copy.map = *static_cast<const CUtensorMap*>(map);
  copy.tiled = true;
  copy.start = start;
  copy.shared = shared;
  copy.bytes = box_bytes(copy.map);
  copy.owner = thread;
  if (copy.map.rank != rank) fail("a tensor copy of rank " + std::to_string(rank) + " was given another tensor map");
  return copy;
}

// A gathered copy takes a row of the box four times.
static void gather(BulkCopy& copy) {
  if (copy.map.rank != 2 || copy.map.box[1] != 1)
    fail("a copy that gathers rows was given a tensor map whose box has " + std::to_string(copy.map.box[1]) +
         " rows in " + std::to_string(copy.map.rank) + " dimensions; expected one row in two");
  copy.gathers = true;
  copy.bytes *= 4;
}

void load_tensor(uint32_t shared, const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t barrier,
                 LoadMode mode) {
  BulkCopy copy = tensor_copy(map, rank, start, shared & window_mask);
  if (mode.gathers) gather(copy);
  if ((rank_of(shared) ^ rank_of(barrier)) > uint32_t(mode.in_pairs))
    fail("a tensor copy to one block of a cluster, with an mbarrier of another");
  copy.loads = true;
  copy.barrier = in_cluster(barrier);
  in_block_of(barrier, "a tensor copy", [&](uint32_t local) { memory_barrier(local, "a tensor copy"); });
  in_block_of(shared, "a tensor copy", [&](uint32_t) { issue_bulk_copy(copy); });
}

void multicast_tensor(uint32_t shared, const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t barrier,
                      uint32_t blocks, LoadMode mode) {
  if (!(blocks & 0xffff)) fail("a multicast copy to no block");
  for (uint32_t i = 0; i < 16; ++i)
    if (blocks >> i & 1) load_tensor(map_into(shared, i), map, rank, start, map_into(barrier, i), mode);
}

void store_tensor(const void* map, uint32_t rank, std::array<int32_t, 5> start, uint32_t shared) {
  BulkCopy copy = tensor_copy(map, rank, start, shared);
  copy.group = thread->bulk_group;
  issue_bulk_copy(copy);
}

void load_bytes(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  BulkCopy copy = {};
  copy.loads = true;
  copy.shared = shared;
  copy.global = static_cast<unsigned char*>(const_cast<void*>(global));
  copy.bytes = bytes;
  copy.barrier = in_cluster(barrier);
  issue_bulk_copy(copy);
}

void store_bytes(void* global, uint32_t shared, uint32_t bytes) {
  BulkCopy copy = {};
  copy.shared = shared;
  copy.global = static_cast<unsigned char*>(global);
  copy.bytes = bytes;
  copy.owner = thread;
  copy.group = thread->bulk_group;
  issue_bulk_copy(copy);
}

void wait_for_stores(int allowed) {
  const int before = thread->bulk_group - allowed;
  auto& copies = block->bulk_copies;
  const auto due = [&](const BulkCopy& c) { return !c.loads && c.owner == thread && c.group < before; };
  for (const BulkCopy& copy : copies)
    if (due(copy)) complete_store(copy);
  copies.erase(std::remove_if(copies.begin(), copies.end(), due), copies.end());
}

}  // namespace emulator
