extern "C" __global__ void __launch_bounds__(32) kernel_kernel(int* __restrict__ chosen_ptr,
        float* __restrict__ pairs_ptr, float* __restrict__ weights_ptr, nv_bfloat16* __restrict__ y_ptr, int slots,
        int tokens) {
  int index = (int)blockIdx.x;
  int thread = (int)threadIdx.x;
  int row = index;
  int part = thread;
  if (row < tokens && part < 16) {
    alignas(64) float total_ptr[4];
    #pragma unroll
    for (int v = 0; v < 4; ++v) {
      total_ptr[v] = 0.0f;
    }
    for (int slot = 0; slot < slots; ++slot) {
      int expert = chosen_ptr[slot + row * slots];
      float weight = weights_ptr[slot + row * slots];
      if (0 <= expert && expert < 8) {
        int64_t pair = (int64_t)(row * slots) + slot;
        alignas(64) float stored_ptr[4];
        *(float4*)(stored_ptr + 0) = *(float4*)(pairs_ptr + (pair * 64 + (int64_t)part * 4));
        #pragma unroll
        for (int v_1 = 0; v_1 < 4; ++v_1) {
          float value = stored_ptr[v_1];
          total_ptr[v_1] = total_ptr[v_1] + weight * value;
        }
      }
    }
    alignas(64) nv_bfloat16 stored_ptr_1[4];
    #pragma unroll
    for (int v_2 = 0; v_2 < 4; ++v_2) {
      stored_ptr_1[v_2] = (nv_bfloat16)total_ptr[v_2];
    }
    *(nv_bfloat164*)(y_ptr + ((int64_t)row * 64 + (int64_t)part * 4)) = *(nv_bfloat164*)(stored_ptr_1 + 0);
  }
}
