// Accesses to memory that is not there, and integer divisions by zero, end a kernel with an error instead of the process.
//
// Pages without access lie around shared memory and under every stack; tests put some behind global arrays. The
// handler sends the faulting thread to a function that reports the address, on a stack of its own.
#pragma once
#include <signal.h>
#include <ucontext.h>

#include "scheduler.h"

namespace emulator {

#if defined(__x86_64__) && defined(__linux__)

constexpr size_t fault_stack_bytes = 64 << 10;
inline thread_local const unsigned char* fault_address;
inline thread_local unsigned char* report_stack;  // of fault_stack_bytes
constexpr int faults[] = {SIGSEGV, SIGBUS, SIGFPE};
inline struct sigaction previous_handler[3];

inline std::string describe_address(const unsigned char* address) {
  const SharedMemory& shared = block->shared;
  if (address >= shared.pages && address < shared.pages + shared.mapped)
    return "byte " + std::to_string(address - shared.base) + " of shared memory, which has " +
           std::to_string(shared.bytes);
  const uint64_t position = uint64_t(address);
  char text[32];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(position));
  return std::string("address ") + text + ", which is outside of every array, or the stack is too small";
}

[[noreturn]] inline void report_access() { fail("access to " + describe_address(fault_address)); }

[[noreturn]] inline void report_division() { fail("integer division by zero, whose result is not specified on a GPU"); }

inline struct sigaction& previous_handler_of(int signal) {
  int place = 0;
  while (faults[place] != signal) ++place;
  return previous_handler[place];
}

inline void handle_fault(int signal, siginfo_t* information, void* interrupted) {
  if (!thread) {  // not of the emulator: what would have happened without this handler
    sigaction(signal, &previous_handler_of(signal), nullptr);
    return;
  }
  fault_address = static_cast<const unsigned char*>(information->si_addr);
  auto registers = static_cast<ucontext_t*>(interrupted)->uc_mcontext.gregs;
  // A function finds its stack 8 bytes off a multiple of 16, for its caller has pushed where to return to.
  registers[REG_RSP] = greg_t((uintptr_t(report_stack) + fault_stack_bytes) / 16 * 16 - 8);
  registers[REG_RIP] = greg_t(signal == SIGFPE ? report_division : report_access);
}

// While one exists, faults of threads of the emulator are reported.
class FaultReports {
 public:
  FaultReports() {
    struct sigaction action = {};
    action.sa_sigaction = handle_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int signal : faults) sigaction(signal, &action, &previous_handler_of(signal));
  }
  ~FaultReports() {
    for (int signal : faults) sigaction(signal, &previous_handler_of(signal), nullptr);
  }
};

// The stacks on which an OS thread handles faults and reports them.
class FaultStacks {
 public:
  FaultStacks() : handling_(fault_stack_bytes), reporting_(fault_stack_bytes) {
    stack_t stack = {};
    stack.ss_sp = handling_.data();
    stack.ss_size = handling_.size();
    sigaltstack(&stack, &previous_);
    report_stack = reporting_.data();
  }
  ~FaultStacks() { sigaltstack(&previous_, nullptr); }

 private:
  std::vector<unsigned char> handling_, reporting_;
  stack_t previous_;
};

#else  // a fault ends the process

class FaultReports {};
class FaultStacks {};

#endif

}  // namespace emulator
