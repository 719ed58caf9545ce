template <typename T>
__forceinline__ __device__ T warp_reduce_sum_32(T val) {
    #pragma unroll
    for (int mask = 32 >> 1; mask > 0; mask >>= 1) {
        T shuffled = __shfl_xor_sync(0xFFFFFFFF, val, mask);
        val += shuffled;
    }
    return val;
}

extern "C" __global__ void __launch_bounds__(128) kernel_kernel(float* __restrict__ bias_ptr,
        int* __restrict__ chosen_ptr, nv_bfloat16* __restrict__ matrix_ptr, nv_bfloat16* __restrict__ out_ptr,
        nv_bfloat16* __restrict__ rows_ptr, int slots, int tokens) {
  int index = (int)blockIdx.x;
  int thread = (int)threadIdx.x;
  int pair = index >> 3;
  int lane = thread & 31;
  int first = (index & 7) * 8 + (thread >> 5) * 2;
  if (pair < tokens * slots && first < 64) {
    int token = pair / slots;
    int slot = pair % slots;
    int expert = chosen_ptr[token * slots + slot];
    if (0 <= expert && expert < 8) {
      int64_t row = (int64_t)token;
      alignas(64) float sums_ptr[4];
      // each lane multiplies its inputs
      #pragma unroll
      for (int c = 0; c < 4; ++c) {
        sums_ptr[c] = 0.0f;
      }
      alignas(64) nv_bfloat16 weights_ptr[96];
      #pragma unroll
      for (int step = 0; step < 2; ++step) {
        if (step * 32 + lane < 16) {
          #pragma unroll
          for (int c_1 = 0; c_1 < 4; ++c_1) {
            *(uint4*)(weights_ptr + (step * 32 + c_1 * 8)) = *(uint4*)(matrix_ptr
                + ((int64_t)expert * 16384 + ((int64_t)min((c_1 >> 1) + first, 63) >> 3) * 2048
                + ((int64_t)c_1 & 1) * 1024 + (int64_t)step * 256 + ((int64_t)min((c_1 >> 1) + first, 63) & 7) * 128
                + (int64_t)lane * 8));
          }
        }
      }
      if (lane < -48) {
        #pragma unroll
        for (int c_2 = 0; c_2 < 4; ++c_2) {
          *(uint4*)(weights_ptr + (c_2 * 8 + 64)) = *(uint4*)(matrix_ptr
              + ((int64_t)expert * 16384 + ((int64_t)min((c_2 >> 1) + first, 63) >> 3) * 2048
              + ((int64_t)c_2 & 1) * 1024 + ((int64_t)min((c_2 >> 1) + first, 63) & 7) * 128 + (int64_t)lane * 8
              + 512));
        }
      }
      if (lane < 16) {
        alignas(64) float values_ptr[8];
        alignas(64) nv_bfloat16 stored_ptr[8];
        *(uint4*)(stored_ptr + 0) = *(uint4*)(rows_ptr + (row * 128 + (int64_t)lane * 8));
        #pragma unroll
        for (int v = 0; v < 8; ++v) {
          values_ptr[v] = (float)stored_ptr[v];
        }
        #pragma unroll
        for (int c_3 = 0; c_3 < 4; ++c_3) {
          #pragma unroll
          for (int v_1 = 0; v_1 < 8; ++v_1) {
            sums_ptr[c_3] = sums_ptr[c_3] + values_ptr[v_1] * (float)weights_ptr[c_3 * 8 + v_1];
          }
        }
      }
      // sums over the lanes, bias, activation
      #pragma unroll
      for (int c_4 = 0; c_4 < 4; ++c_4) {
        sums_ptr[c_4] = warp_reduce_sum_32(sums_ptr[c_4]);
        sums_ptr[c_4] = sums_ptr[c_4] + bias_ptr[expert * 128 + (min((c_4 >> 1) + first, 63) >> 3) * 16 + (c_4 & 1) * 8
            + (min((c_4 >> 1) + first, 63) & 7)];
      }
      #pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (lane == i && first + i < 64) {
          float value = sums_ptr[i * 2] * __fdividef(1.0f, 1.0f + __expf(sums_ptr[i * 2] * -1.0f))
              * sums_ptr[i * 2 + 1];
          out_ptr[(int64_t)pair * 64 + first + i] = (nv_bfloat16)value;
        }
      }
    }
  }
}
