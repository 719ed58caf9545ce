// Access to global memory: atomic operations, cached loads, fences. Blocks may run on several OS threads.
#pragma once
#include <cstring>

#include "mathematics.h"
#include "scheduler.h"
#include "vectors.h"

namespace emulator {

// Replaces a value by what `change` makes of it, and returns what it was before. `Value` has 2, 4 or 8 bytes.
template <class Value, class Change>
EMULATOR_UNWATCHED Value atomically(Value* address, Change change) {
  using FewBits = std::conditional_t<sizeof(Value) == 4, uint32_t, uint16_t>;
  using Bits = std::conditional_t<sizeof(Value) == 8, uint64_t, FewBits>;
  static_assert(sizeof(Bits) == sizeof(Value));
  ++block->cluster->progress;
  auto bits = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(bits, __ATOMIC_SEQ_CST), after;
  Value old;
  do {
    memcpy(&old, &before, sizeof old);
    const Value fresh = change(old);
    memcpy(&after, &fresh, sizeof after);
  } while (!__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}

// A load that may race with stores of kernels before (ld.relaxed): what it finds is of use whether it changes or not.
template <class Value>
EMULATOR_UNWATCHED Value load_any_time(const void* address) {
  return __atomic_load_n(static_cast<const Value*>(address), __ATOMIC_RELAXED);
}

// The second operand may need a conversion to the first's type, so it takes no part in choosing it.
template <class Value> struct Same { using type = Value; };
template <class Value> using same = typename Same<Value>::type;

}  // namespace emulator

template <class Value>
Value atomicAdd(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return Value(old + value); });
}
template <class Value>
Value atomicSub(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return Value(old - value); });
}
template <class Value>
Value atomicMax(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return old < value ? value : old; });
}
template <class Value>
Value atomicMin(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return value < old ? value : old; });
}
template <class Value>
Value atomicExch(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value) { return value; });
}
template <class Value>
Value atomicCAS(Value* address, emulator::same<Value> expected, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return old == expected ? value : old; });
}
template <class Value>
Value atomicAnd(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return Value(old & value); });
}
template <class Value>
Value atomicOr(Value* address, emulator::same<Value> value) {
  return emulator::atomically(address, [=](Value old) { return Value(old | value); });
}

template <class Value>
Value __ldg(const Value* address) { return *address; }
template <class Value>
Value __ldcg(const Value* address) { return *address; }
template <class Value>
Value __ldcs(const Value* address) { return *address; }
template <class Value>
void __stcs(Value* address, Value value) { *address = value; }

// The threads of a block run in turn on one OS thread, so only blocks need fences among themselves.
EMULATOR_UNWATCHED inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
EMULATOR_UNWATCHED inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { emulator::poll("__nanosleep"); }
