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

std::string describe_address(const unsigned char* address);

[[noreturn]] inline void report_access() { fail("access to " + describe_address(fault_address)); }

[[noreturn]] inline void report_division() { fail("integer division by zero, whose result is not specified on a GPU"); }

struct sigaction& previous_handler_of(int signal);

void handle_fault(int signal, siginfo_t* information, void* interrupted);

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
