__forceinline__ __device__ void mma_m16n8k16_row_col_f32_bf16_bf16_f32(float& __d0, float& __d1, float& __d2,
        float& __d3, uint32_t __a0, uint32_t __a1, uint32_t __a2, uint32_t __a3, uint32_t __b0, uint32_t __b1,
        float __c0, float __c1, float __c2, float __c3) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %11, %12, %13};" : "=f"(__d0), "=f"(__d1), "=f"(__d2), "=f"(__d3) : "r"(__a0), "r"(__a1),
      "r"(__a2), "r"(__a3), "r"(__b0), "r"(__b1), "f"(__c0), "f"(__c1), "f"(__c2), "f"(__c3));
}

__forceinline__ __device__ void cta_sync() {
    __syncthreads();
}

__forceinline__ __device__ void cp_async_wait_group_2() {
  asm volatile("cp.async.wait_group 2;" :  :  : "memory");
}

__forceinline__ __device__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" :  : );
}

__forceinline__ __device__ void ldmatrix_m8n8_x4(uint32_t& __r0, uint32_t& __r1, uint32_t& __r2, uint32_t& __r3,
        uint32_t __p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(__r0), "=r"(__r1), "=r"(__r2),
      "=r"(__r3) : "r"(__p) : "memory");
}

__forceinline__ __device__ void cp_async_cg(uint32_t __dst_mem, const void* __src_mem, uint32_t __src_size) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" :  : "r"(__dst_mem), "l"(__src_mem),
      "r"(__src_size) : "memory");
}

__forceinline__ __device__ unsigned int cvta_generic_to_shared(void* p) {
    return __cvta_generic_to_shared(p);
}

extern "C" __global__ void __launch_bounds__(128) kernel_kernel(float* __restrict__ bias_ptr,
        int* __restrict__ blocks_ptr, int* __restrict__ count_ptr, nv_bfloat16* __restrict__ matrix_ptr,
        nv_bfloat16* __restrict__ out_ptr, int* __restrict__ pairs_ptr, nv_bfloat16* __restrict__ rows_ptr, int B,
        int slots) {
  int index = (int)blockIdx.x;
  int thread = (int)threadIdx.x;
  extern __shared__ __align__(1024) uchar pool_buf_ptr[];
  nv_bfloat16* row_tiles = (nv_bfloat16*)pool_buf_ptr;
  nv_bfloat16* column_tiles = (nv_bfloat16*)pool_buf_ptr + 4096;
  int block = index;
  int first_column = 0;
  int lane = thread & 31;
  int warp_row = (thread >> 7) * 16;
  int warp_column = ((thread & 127) >> 5) * 32;
  if (block < count_ptr[0]) {
    int expert = blocks_ptr[block];
    int sources;
    alignas(64) uint left_ptr[4];
    alignas(64) uint right_ptr[8];
    alignas(64) float sums_ptr[16];
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
      #pragma unroll
      for (int v = 0; v < 4; ++v) {
        sums_ptr[j * 4 + v] = 0.0f;
      }
    }
    int pair = pairs_ptr[block * 16 + ((int)threadIdx.x >> 3)];
    sources = -1;
    if (0 <= pair) {
      sources = pair / slots;
    }
    int reading;
    int writing;
    // copies of the first k-tiles begin
    #pragma unroll
    for (int stage = 0; stage < 3; ++stage) {
      if (stage < 2) {
        int k = stage * 64 + (thread & 7) * 8;
        int64_t row = (int64_t)max(sources, 0);
        cp_async_cg(cvta_generic_to_shared(&row_tiles[stage * 1024 + ((int)threadIdx.x >> 3) * 64
            + (((int)threadIdx.x & 7) ^ (((int)threadIdx.x & 63) >> 3)) * 8]), &rows_ptr[row * 128 + k], 0 <= sources
            ? 16u : 0u);
        int64_t expert_1 = (int64_t)expert;
        int k_1 = stage * 64 + (thread & 7) * 8;
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
          int column = i * 16 + (thread >> 3) + first_column;
          cp_async_cg(cvta_generic_to_shared(&column_tiles[stage * 8192 + i * 1024 + ((int)threadIdx.x >> 3) * 64
              + (((int)threadIdx.x & 7) ^ (((int)threadIdx.x & 63) >> 3)) * 8]),
              &matrix_ptr[expert_1 * 16384 + (int64_t)column * 128 + k_1], 16u);
        }
      }
      cp_async_commit_group();
    }
    reading = 0;
    writing = 3;
    for (int k_tile = 0; k_tile < 2; ++k_tile) {
      // wait for this thread's copies of the k-tile, then for those of all threads
      cp_async_wait_group_2();
      cta_sync();
      // a group even if it is empty: the number of groups in flight stays the same
      cp_async_commit_group();
      #pragma unroll
      for (int step = 0; step < 4; ++step) {
        ldmatrix_m8n8_x4(left_ptr[0], left_ptr[1], left_ptr[2], left_ptr[3],
            cvta_generic_to_shared(&row_tiles[reading * 1024 + warp_row * 64 + (lane & 15) * 64
            + ((step * 2 + (lane >> 4)) ^ (lane & 7)) * 8]));
        #pragma unroll
        for (int j_1 = 0; j_1 < 2; ++j_1) {
          ldmatrix_m8n8_x4(right_ptr[j_1 * 4], right_ptr[j_1 * 4 + 1], right_ptr[j_1 * 4 + 2], right_ptr[j_1 * 4 + 3],
              cvta_generic_to_shared(&column_tiles[reading * 8192 + j_1 * 1024 + (lane >> 4) * 512 + warp_column * 64
              + (lane & 7) * 64 + ((step * 2 + ((lane & 15) >> 3)) ^ (lane & 7)) * 8]));
        }
        #pragma unroll
        for (int j_2 = 0; j_2 < 4; ++j_2) {
          mma_m16n8k16_row_col_f32_bf16_bf16_f32(sums_ptr[j_2 * 4], sums_ptr[j_2 * 4 + 1], sums_ptr[j_2 * 4 + 2],
              sums_ptr[j_2 * 4 + 3], left_ptr[0], left_ptr[1], left_ptr[2], left_ptr[3], right_ptr[j_2 * 2],
              right_ptr[j_2 * 2 + 1], sums_ptr[j_2 * 4], sums_ptr[j_2 * 4 + 1], sums_ptr[j_2 * 4 + 2],
              sums_ptr[j_2 * 4 + 3]);
        }
      }
      reading = reading == 3 ? 0 : reading + 1;
      writing = writing == 3 ? 0 : writing + 1;
    }
    // bias and activation of the sums, stored
    #pragma unroll
    for (int j_3 = 0; j_3 < 2; ++j_3) {
      #pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        int tile_row = lower * 8 + (lane >> 2) + warp_row;
        int pair_1 = pairs_ptr[block * 16 + tile_row];
        int64_t row_1 = (int64_t)block * 16 + tile_row;
        if (0 <= pair_1) {
          alignas(64) float values_ptr[2];
          int first = (first_column + warp_column) >> 1;
          int output = j_3 * 8 + (lane & 3) * 2 + first;
          int column_1 = j_3 * 16 + (lane & 3) * 2 + first_column + warp_column;
          int up_column = j_3 * 16 + (lane & 3) * 2 + first_column + warp_column + 8;
          #pragma unroll
          for (int v_1 = 0; v_1 < 2; ++v_1) {
            float gate = sums_ptr[j_3 * 8 + lower * 2 + v_1] + bias_ptr[expert * 128 + v_1 + column_1];
            float up = sums_ptr[j_3 * 8 + lower * 2 + v_1 + 4] + bias_ptr[expert * 128 + v_1 + up_column];
            values_ptr[v_1] = gate * __fdividef(1.0f, 1.0f + __expf(gate * -1.0f)) * up;
          }
          nv_bfloat162 __1;
          float2 v_ = *(float2*)(values_ptr + 0);
          __1.x = (nv_bfloat16)v_.x;
          __1.y = (nv_bfloat16)v_.y;
          *(nv_bfloat162*)(out_ptr + (row_1 * 64 + output)) = __1;
        }
      }
    }
  }
}
