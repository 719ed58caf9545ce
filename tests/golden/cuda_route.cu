__forceinline__ __device__ void warp_sync() {
    __syncwarp();
}

template <typename T>
__forceinline__ __device__ T warp_reduce_sum_32(T val) {
    #pragma unroll
    for (int mask = 32 >> 1; mask > 0; mask >>= 1) {
        T shuffled = __shfl_xor_sync(0xFFFFFFFF, val, mask);
        val += shuffled;
    }
    return val;
}

template <typename T>
__forceinline__ __device__ T warp_reduce_max_32(T val) {
    #pragma unroll
    for (int mask = 32 >> 1; mask > 0; mask >>= 1) {
        T shuffled = __shfl_xor_sync(0xFFFFFFFF, val, mask);
        val = max(val, shuffled);
    }
    return val;
}

extern "C" __global__ void __launch_bounds__(128) kernel_kernel(int* __restrict__ chosen_ptr,
        float* __restrict__ logits_ptr, float* __restrict__ weights_ptr, int tokens) {
  int block = (int)blockIdx.x;
  int thread = (int)threadIdx.x;
  __shared__ alignas(64) float scores_ptr[32];
  __shared__ alignas(64) float group_scores_ptr[4];
  __shared__ alignas(64) int ids_ptr[8];
  __shared__ alignas(64) float mixing_ptr[8];
  int warp = thread >> 5;
  int lane = thread & 31;
  int token = block * 4 + warp;
  if (token < tokens) {
    float x;
    float choice;
    // scores
    x = -CUDART_INF_F;
    if (lane < 8) {
      x = logits_ptr[token * 8 + lane];
    }
    float largest_1;
    float total;
    largest_1 = -CUDART_INF_F;
    if (lane < 8) {
      largest_1 = max(largest_1, x);
    }
    largest_1 = warp_reduce_max_32(largest_1);
    total = 0.0f;
    if (lane < 8) {
      x = expf(x - largest_1);
      total = total + x;
    }
    total = warp_reduce_sum_32(total);
    x = x / total;
    choice = x;
    if (lane < 8) {
      scores_ptr[warp * 8 + lane] = x;
    }
    warp_sync();
    choice = choice != choice ? -CUDART_INF_F : choice;
    // the largest, one after the other
    int keys;
    uint taken;
    int expert_2;
    float number = choice == 0.0f ? 0.0f : choice;
    int bits = *(int *)(&number);
    keys = bits ^ ((bits >> 31) & 2147483647);
    taken = 0u;
    for (int slot = 0; slot < 2; ++slot) {
      int own;
      int largest_2;
      own = -2147483648;
      expert_2 = 2147483647;
      bool left = lane < 8 && (taken & 1u) == 0u;
      if (left && own < keys) {
        own = keys;
        expert_2 = lane;
      }
      largest_2 = __reduce_max_sync(4294967295u, own);
      if (own < largest_2) {
        expert_2 = 2147483647;
      }
      expert_2 = __reduce_min_sync(4294967295u, expert_2);
      if (lane == expert_2) {
        taken = taken | 1u;
      }
      if (lane == 0) {
        ids_ptr[warp * 2 + slot] = expert_2;
      }
    }
    warp_sync();
    // weights of the experts selected
    float share_1;
    share_1 = 0.0f;
    if (lane < 2) {
      int expert = ids_ptr[warp * 2 + lane];
      share_1 = scores_ptr[warp * 8 + expert];
    }
    if (lane < 2) {
      mixing_ptr[warp * 2 + lane] = share_1;
    }
    float total_1;
    total_1 = 0.0f;
    int slot_1 = lane;
    if (slot_1 < 2) {
      total_1 = total_1 + mixing_ptr[warp * 2 + slot_1];
    }
    int slot_2 = lane;
    if (slot_2 < 2) {
      float share = mixing_ptr[warp * 2 + slot_2];
      int expert_1 = ids_ptr[warp * 2 + slot_2];
      chosen_ptr[token * 2 + slot_2] = expert_1;
      weights_ptr[token * 2 + slot_2] = expert_1 < 0 ? 0.0f : share;
    }
  }
}
