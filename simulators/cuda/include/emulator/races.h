// Who read and wrote each byte of shared memory last, and whether a barrier lies between two threads' accesses.
#pragma once
#include "order.h"

namespace emulator {

std::string in_words(const dim3& index);

[[noreturn]] void report_race(const Thread& t, const char* does, size_t offset, const Access& other,
                              const char* did);

bool happened_before(const Access& access, const Thread& t);

void note_read(const Thread& t, size_t offset, size_t bytes);

// That a thread may overwrite these bytes.
void expect_unread(const Thread& t, size_t offset, size_t bytes);

void note_write(const Thread& t, size_t offset, size_t bytes);

// The hardware has written these bytes: who waits for it may read them.
void forget(size_t offset, size_t bytes);

}  // namespace emulator
