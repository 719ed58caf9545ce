extern "C" __global__ void __launch_bounds__(256) kernel_kernel(int* __restrict__ chosen_ptr, float* __restrict__ pairs_ptr, float* __restrict__ weights_ptr, nv_bfloat16* __restrict__ y_ptr, int slots, int tokens) {
  int warp_id_in_cta = __shfl_sync((uint)4294967295, (((int)threadIdx.x) >> 5), 0, 32);
  int index = ((int)blockIdx.x);
  int thread = ((int)threadIdx.x);
  int token = index;
  int column = thread;
  alignas(64) float total_ptr[1];
  if ((token < tokens) && (column < 64)) {
    total_ptr[0] = 0x0p+0f/*0.000000e+00*/;
    for (int slot = 0; slot < slots; ++slot) {
      int expert = chosen_ptr[(slot + (token * slots))];
      float weight = weights_ptr[(slot + (token * slots))];
      if ((0 <= expert) && (expert < 8)) {
        total_ptr[0] = (total_ptr[0] + (weight * pairs_ptr[(((((int64_t)(token * slots)) * (int64_t)64) + (((int64_t)slot) * (int64_t)64)) + ((int64_t)column))]));
      }
    }
    y_ptr[((((int64_t)token) * (int64_t)64) + ((int64_t)column))] = ((nv_bfloat16)total_ptr[0]);
  }
}
