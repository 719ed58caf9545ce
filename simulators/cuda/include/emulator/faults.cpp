#include "faults.h"

namespace emulator {

#if defined(__x86_64__) && defined(__linux__)

std::string describe_address(const unsigned char* address) {
  const SharedMemory& shared = block->shared;
  if (address >= shared.pages && address < shared.pages + shared.mapped)
    return "byte " + std::to_string(address - shared.base) + " of shared memory, which has " +
           std::to_string(shared.bytes);
  const uint64_t position = uint64_t(address);
  char text[32];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(position));
  return std::string("address ") + text + ", which is outside of every array, or the stack is too small";
}

struct sigaction& previous_handler_of(int signal) {
  int place = 0;
  while (faults[place] != signal) ++place;
  return previous_handler[place];
}

void handle_fault(int signal, siginfo_t* information, void* interrupted) {
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

#endif

}  // namespace emulator
