// cp.async: a thread's copies from global to shared memory, in groups that complete in order.
//
// The earliest that a copy can be seen is when it is issued; the latest is when a wait says that it must be there.
#pragma once
#include "hazards.h"
#include "watched_arrays.h"

namespace emulator {

void complete(const Copy& copy, Thread& owner);

void issue_copy(uint32_t destination, const void* source, uint32_t bytes, uint32_t read_bytes);

inline void commit_copies() { ++thread->copies.group; }

// Completes the groups before `group`, in order.
void complete_copies_before(int group, Thread& owner);

// All but the last `allowed` committed groups are complete.
inline void wait_for_copies(int allowed) { complete_copies_before(thread->copies.group - allowed, *thread); }

inline void wait_for_all_copies() { complete_copies_before(thread->copies.group + 1, *thread); }

}  // namespace emulator
