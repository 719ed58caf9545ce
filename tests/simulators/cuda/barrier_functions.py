"""Functions of CUDA C for mbarriers in the style of TVM, one for each instruction."""

BARRIER_FUNCTIONS = """
__forceinline__ __device__ unsigned shared_address(const void* pointer) { return __cvta_generic_to_shared(pointer); }
__forceinline__ __device__ void init(void* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(shared_address(barrier)), "r"(count) : "memory");
}
__forceinline__ __device__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}
__forceinline__ __device__ void arrive(void* barrier, unsigned count) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" : : "r"(shared_address(barrier)), "r"(count) : "memory");
}
__forceinline__ __device__ void arrive_with_bytes(void* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
               : : "r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__forceinline__ __device__ void wait(void* barrier, unsigned parity) {
  asm volatile(
      "{\\n"
      ".reg .pred P1;\\n"
      "AGAIN:\\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 P1, [%0], %1;\\n"
      "@P1 bra.uni DONE;\\n"
      "bra.uni AGAIN;\\n"
      "DONE:\\n"
      "}\\n"
      : : "r"(shared_address(barrier)), "r"(parity) : "memory");
}
"""
