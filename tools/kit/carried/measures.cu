// Kernels that measure the device; the emulator has no use for them.

// Keeps the device busy, so that the host can queue what is timed.
extern "C" __global__ void __launch_bounds__(32) kit_spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

// Reads `count` pieces of 16 bytes, `rounds` times: from memory where they exceed the L2 cache, otherwise from it.
extern "C" __global__ void __launch_bounds__(512) kit_read(const uint4* data, unsigned* out, long long count, int rounds) {
  unsigned sum = 0;
  const long long step = (long long)gridDim.x * 512;
  for (int round = 0; round < rounds; ++round)
#pragma unroll 8
    for (long long i = (long long)blockIdx.x * 512 + threadIdx.x; i < count; i += step) {
      uint4 piece;
      asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
                   : "l"(data + i));
      sum += piece.x ^ piece.y ^ piece.z ^ piece.w;
    }
  if (sum == 0x12345678) out[0] = sum;
}

// Does nothing; `early`: as a kernel that begins before the previous one has ended.
extern "C" __global__ void __launch_bounds__(128) kit_empty(int early) {
#if __CUDA_ARCH__ >= 900
  if (early) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  }
#endif
}

// Writes and, with `fence`, makes each write visible to the whole device: what such a barrier costs under load.
extern "C" __global__ void __launch_bounds__(128) kit_fence(unsigned* data, int rounds, int fence) {
  unsigned* own = data + (long long)blockIdx.x * 128 + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(own), "r"(round) : "memory");
    if (fence) __threadfence();
  }
}
