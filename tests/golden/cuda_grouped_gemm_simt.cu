__forceinline__ __device__ void cta_sync() {
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(256) kernel_kernel(float* __restrict__ bias_ptr,
        int* __restrict__ blocks_ptr, int* __restrict__ count_ptr, float* __restrict__ matrix_ptr,
        float* __restrict__ out_ptr, int* __restrict__ pairs_ptr, float* __restrict__ rows_ptr, int B, int slots) {
  int index = (int)blockIdx.x;
  int thread = (int)threadIdx.x;
  __shared__ alignas(64) float row_tile_ptr[1040];
  __shared__ alignas(64) float column_tile_ptr[1040];
  __shared__ alignas(64) int sources_ptr[64];
  int block = index >> 1;
  int first_column = (index & 1) * 64;
  int thread_row = thread >> 4;
  int thread_column = thread & 15;
  if (block < count_ptr[0]) {
    int expert = blocks_ptr[block];
    alignas(64) float sums_ptr[16];
    int row = thread;
    if (row < 64) {
      int pair = pairs_ptr[block * 64 + row];
      sources_ptr[row] = -1;
      if (0 <= pair) {
        sources_ptr[row] = pair / slots;
      }
    }
    cta_sync();
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
      #pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums_ptr[i * 4 + j] = 0.0f;
      }
    }
    for (int k_tile = 0; k_tile < 8; ++k_tile) {
      // tiles of rows and columns, copied to shared memory
      float number;
      int depth = thread & 15;
      #pragma unroll
      for (int i_1 = 0; i_1 < 4; ++i_1) {
        int row_1 = i_1 * 16 + (thread >> 4);
        row_tile_ptr[depth * 65 + row_1] = 0.0f;
        int source = sources_ptr[row_1];
        if (0 <= source && k_tile * 16 + depth < 128) {
          number = rows_ptr[(int64_t)source * 128 + (int64_t)k_tile * 16 + depth];
          row_tile_ptr[depth * 65 + row_1] = number;
        }
      }
      #pragma unroll
      for (int i_2 = 0; i_2 < 4; ++i_2) {
        int column = i_2 * 16 + (thread >> 4);
        column_tile_ptr[depth * 65 + column] = 0.0f;
        if (first_column + column < 128 && k_tile * 16 + depth < 128) {
          column_tile_ptr[depth * 65 + column] = matrix_ptr[(int64_t)expert * 16384 + (int64_t)first_column * 128
              + (int64_t)column * 128 + (int64_t)k_tile * 16 + depth];
        }
      }
      cta_sync();
      // products of the tiles
      alignas(64) float left_ptr[4];
      alignas(64) float right_ptr[4];
      #pragma unroll
      for (int depth_1 = 0; depth_1 < 16; ++depth_1) {
        #pragma unroll
        for (int i_3 = 0; i_3 < 4; ++i_3) {
          left_ptr[i_3] = row_tile_ptr[depth_1 * 65 + i_3 * 16 + thread_row];
        }
        #pragma unroll
        for (int j_1 = 0; j_1 < 4; ++j_1) {
          right_ptr[j_1] = column_tile_ptr[depth_1 * 65 + (j_1 >> 1) * 32 + (thread_column >> 3) * 16 + (j_1 & 1) * 8
              + (thread_column & 7)];
        }
        #pragma unroll
        for (int i_4 = 0; i_4 < 4; ++i_4) {
          #pragma unroll
          for (int j_2 = 0; j_2 < 4; ++j_2) {
            sums_ptr[i_4 * 4 + j_2] = sums_ptr[i_4 * 4 + j_2] + left_ptr[i_4] * right_ptr[j_2];
          }
        }
      }
      cta_sync();
    }
    // bias and activation of the sums, stored
    #pragma unroll
    for (int i_5 = 0; i_5 < 4; ++i_5) {
      int pair_1 = pairs_ptr[block * 64 + i_5 * 16 + thread_row];
      if (0 <= pair_1) {
        int64_t row_2 = (int64_t)block * 64 + (int64_t)i_5 * 16 + thread_row;
        #pragma unroll
        for (int j_3 = 0; j_3 < 2; ++j_3) {
          if (j_3 * 16 + (first_column >> 1) + thread_column < 64) {
            float gate = sums_ptr[i_5 * 4 + j_3 * 2]
                + bias_ptr[expert * 128 + j_3 * 32 + (thread_column >> 3) * 16 + first_column + (thread_column & 7)];
            float up = sums_ptr[i_5 * 4 + j_3 * 2 + 1]
                + bias_ptr[expert * 128 + j_3 * 32 + (thread_column >> 3) * 16 + first_column + (thread_column & 7)
                + 8];
            out_ptr[row_2 * 64 + (int64_t)j_3 * 16 + ((int64_t)first_column >> 1) + thread_column] = gate
                * (1.0f / (1.0f + expf(gate * -1.0f))) * up;
          }
        }
      }
    }
  }
}
