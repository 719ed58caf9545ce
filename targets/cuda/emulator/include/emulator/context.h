// Switching between stacks: what makes one OS thread run all CUDA threads of a block in turn.
#pragma once
#include <cstdint>

#if defined(__x86_64__) && !defined(EMULATOR_PORTABLE_SWITCH)

namespace emulator {
struct Context {
  void* stack_pointer;
};
}  // namespace emulator

// Saves the registers that a call must keep on the current stack, and takes them from another.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch_stack(void** save_here, void* go_to);
asm(R"(
.text
.globl emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");

namespace emulator {

inline void switch_context(Context& from, const Context& to) {
  emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
}

// A context that starts `entry`, which never returns, on an empty stack.
inline void prepare_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(63));
  *--top = nullptr;  // where entry would return to; keeps the stack aligned as a call would
  *--top = reinterpret_cast<void*>(entry);
  constexpr int kept_registers = 6;
  for (int i = 0; i < kept_registers; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

}  // namespace emulator

#else
#include <ucontext.h>

namespace emulator {

struct Context {
  ucontext_t registers;
};

inline void switch_context(Context& from, const Context& to) { swapcontext(&from.registers, &to.registers); }

inline void prepare_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

}  // namespace emulator
#endif
