__forceinline__ __device__ unsigned int tvm_builtin_ballot_sync(unsigned int mask, int pred) {
    return __ballot_sync(mask, pred);
}

__forceinline__ __device__ void tvm_builtin_cuda_cta_sync() {
    __syncthreads();
}

__forceinline__ __device__ void tvm_builtin_cuda_warp_sync() {
    __syncwarp();
}

extern "C" __global__ void __launch_bounds__(1024) kernel_kernel(int* __restrict__ block_count_ptr, int* __restrict__ block_experts_ptr, int* __restrict__ chosen_ptr, int* __restrict__ sorted_pairs_ptr, int slots, int tokens) {
  int warp_id_in_cta = __shfl_sync((uint)4294967295, (((int)threadIdx.x) >> 5), 0, 32);
  int _block = 0;
  int thread = ((int)threadIdx.x);
  __shared__ alignas(64) int counts_ptr[256];
  __shared__ alignas(64) int totals_ptr[8];
  __shared__ alignas(64) int first_block_ptr[9];
  int warp = (thread >> 5);
  int lane = (thread & 31);
  int share = (((tokens * slots) + 31) >> 5);
  int first = min((warp * share), (tokens * slots));
  int end = min((first + share), (tokens * slots));
  if (lane < 8) {
    counts_ptr[((warp * 8) + lane)] = 0;
  }
  tvm_builtin_cuda_warp_sync();
  alignas(64) int expert_ptr[1];
  alignas(64) uint same_ptr[1];
  alignas(64) int before_ptr[1];
  alignas(64) int number_ptr[1];
  for (int step = 0; step < (((end + 31) - first) >> 5); ++step) {
    int place = (((step * 32) + first) + lane);
    expert_ptr[0] = 8;
    if (place < end) {
      expert_ptr[0] = chosen_ptr[(((place / slots) * slots) + (place % slots))];
      if ((expert_ptr[0] < 0) || (8 <= expert_ptr[0])) {
        expert_ptr[0] = 8;
      }
    }
    same_ptr[0] = (uint)4294967295;
    #pragma unroll
    for (int bit = 0; bit < 4; ++bit) {
      int mine = ((expert_ptr[0] >> bit) & 1);
      uint ones = tvm_builtin_ballot_sync((uint)4294967295, mine);
      same_ptr[0] = (same_ptr[0] & ((mine == 1) ? ones : (~ones)));
    }
    before_ptr[0] = ((int)__popc((same_ptr[0] & (((uint)1 << ((uint)lane)) - (uint)1))));
    number_ptr[0] = ((int)__popc(same_ptr[0]));
    if (expert_ptr[0] < 8) {
    }
    tvm_builtin_cuda_warp_sync();
    if ((expert_ptr[0] < 8) && (before_ptr[0] == 0)) {
      counts_ptr[((warp * 8) + expert_ptr[0])] = (counts_ptr[((warp * 8) + expert_ptr[0])] + number_ptr[0]);
    }
    tvm_builtin_cuda_warp_sync();
  }
  alignas(64) int running_ptr[1];
  tvm_builtin_cuda_cta_sync();
  int expert = thread;
  if (expert < 8) {
    running_ptr[0] = 0;
    for (int warp_1 = 0; warp_1 < 32; ++warp_1) {
      int count = counts_ptr[((warp_1 * 8) + expert)];
      counts_ptr[((warp_1 * 8) + expert)] = running_ptr[0];
      running_ptr[0] = (running_ptr[0] + count);
    }
    totals_ptr[expert] = running_ptr[0];
  }
  tvm_builtin_cuda_cta_sync();
  if (warp == 0) {
    alignas(64) int blocks_ptr[1];
    alignas(64) int carry_ptr[1];
    carry_ptr[0] = 0;
    int expert_1 = lane;
    blocks_ptr[0] = 0;
    if (expert_1 < 8) {
      blocks_ptr[0] = ((totals_ptr[expert_1] + 15) >> 4);
    }
    int own = blocks_ptr[0];
    #pragma unroll
    for (int level = 0; level < 5; ++level) {
      int lower = __shfl_up_sync((uint)4294967295, blocks_ptr[0], (1 << level), 32);
      if ((1 << level) <= lane) {
        blocks_ptr[0] = (blocks_ptr[0] + lower);
      }
    }
    if (expert_1 < 8) {
      first_block_ptr[expert_1] = ((carry_ptr[0] + blocks_ptr[0]) - own);
    }
    carry_ptr[0] = (carry_ptr[0] + __shfl_sync((uint)4294967295, blocks_ptr[0], 31, 32));
    if (lane == 0) {
      first_block_ptr[8] = carry_ptr[0];
    }
  }
  tvm_builtin_cuda_cta_sync();
  int expert_2 = thread;
  if (expert_2 < 8) {
    for (int block = 0; block < (first_block_ptr[(expert_2 + 1)] - first_block_ptr[expert_2]); ++block) {
      block_experts_ptr[(block + first_block_ptr[expert_2])] = expert_2;
    }
  }
  if (thread == 0) {
    block_count_ptr[0] = first_block_ptr[8];
  }
  for (int step_1 = 0; step_1 < (((first_block_ptr[8] * 16) + 1023) >> 10); ++step_1) {
    if (((step_1 * 1024) + thread) < (first_block_ptr[8] * 16)) {
      sorted_pairs_ptr[((step_1 * 1024) + ((int)threadIdx.x))] = -1;
    }
  }
  tvm_builtin_cuda_cta_sync();
  alignas(64) int expert_ptr_1[1];
  alignas(64) uint same_ptr_1[1];
  alignas(64) int before_ptr_1[1];
  alignas(64) int number_ptr_1[1];
  for (int step_2 = 0; step_2 < (((end + 31) - first) >> 5); ++step_2) {
    int place_1 = (((step_2 * 32) + first) + lane);
    expert_ptr_1[0] = 8;
    if (place_1 < end) {
      expert_ptr_1[0] = chosen_ptr[(((place_1 / slots) * slots) + (place_1 % slots))];
      if ((expert_ptr_1[0] < 0) || (8 <= expert_ptr_1[0])) {
        expert_ptr_1[0] = 8;
      }
    }
    same_ptr_1[0] = (uint)4294967295;
    #pragma unroll
    for (int bit_1 = 0; bit_1 < 4; ++bit_1) {
      int mine_1 = ((expert_ptr_1[0] >> bit_1) & 1);
      uint ones_1 = tvm_builtin_ballot_sync((uint)4294967295, mine_1);
      same_ptr_1[0] = (same_ptr_1[0] & ((mine_1 == 1) ? ones_1 : (~ones_1)));
    }
    before_ptr_1[0] = ((int)__popc((same_ptr_1[0] & (((uint)1 << ((uint)lane)) - (uint)1))));
    number_ptr_1[0] = ((int)__popc(same_ptr_1[0]));
    if (expert_ptr_1[0] < 8) {
      sorted_pairs_ptr[(((first_block_ptr[expert_ptr_1[0]] * 16) + counts_ptr[((warp * 8) + expert_ptr_1[0])]) + before_ptr_1[0])] = place_1;
    }
    tvm_builtin_cuda_warp_sync();
    if ((expert_ptr_1[0] < 8) && (before_ptr_1[0] == 0)) {
      counts_ptr[((warp * 8) + expert_ptr_1[0])] = (counts_ptr[((warp * 8) + expert_ptr_1[0])] + number_ptr_1[0]);
    }
    tvm_builtin_cuda_warp_sync();
  }
}
