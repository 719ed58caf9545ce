// Switching between stacks: what makes one OS thread run many fibers in turn.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(FIBERS_PORTABLE_SWITCH)

namespace fibers {
struct Context {
  void* stack_pointer;
};
}  // namespace fibers

// Saves the registers that a call must keep on the current stack, and takes them from another.
extern "C" __attribute__((visibility("hidden"))) void fibers_switch_stack(void** save_here, void* go_to);
asm(R"(
.text
.weak fibers_switch_stack
.hidden fibers_switch_stack
.type fibers_switch_stack, @function
fibers_switch_stack:
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
.size fibers_switch_stack, .-fibers_switch_stack
)");

namespace fibers {

inline void switch_context(Context& from, const Context& to) {
  fibers_switch_stack(&from.stack_pointer, to.stack_pointer);
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

}  // namespace fibers

#else
#include <ucontext.h>

namespace fibers {

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

}  // namespace fibers
#endif
