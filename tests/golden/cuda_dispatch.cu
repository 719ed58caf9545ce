__forceinline__ __device__ unsigned int ballot_sync(unsigned int mask, int pred) {
    return __ballot_sync(mask, pred);
}

__forceinline__ __device__ void cta_sync() {
    __syncthreads();
}

__forceinline__ __device__ void warp_sync() {
    __syncwarp();
}

extern "C" __global__ void __launch_bounds__(1024) kernel_kernel(int* __restrict__ block_count_ptr,
        int* __restrict__ block_experts_ptr, int* __restrict__ chosen_ptr, int* __restrict__ sorted_pairs_ptr,
        int slots, int tokens) {
  int thread = (int)threadIdx.x;
  __shared__ alignas(64) int counts_ptr[256];
  __shared__ alignas(64) int totals_ptr[8];
  __shared__ alignas(64) int first_block_ptr[9];
  int warp = thread >> 5;
  int lane = thread & 31;
  int share = (tokens * slots + 31) >> 5;
  int first = min(warp * share, tokens * slots);
  int end = min(first + share, tokens * slots);
  // pairs of each expert, counted
  if (lane < 8) {
    counts_ptr[warp * 8 + lane] = 0;
  }
  warp_sync();
  int expert_3;
  uint same;
  int before;
  int number;
  for (int step = 0; step < ((end + 31 - first) >> 5); ++step) {
    int place = step * 32 + first + lane;
    expert_3 = 8;
    if (place < end) {
      expert_3 = chosen_ptr[place / slots * slots + place % slots];
      if (expert_3 < 0 || 8 <= expert_3) {
        expert_3 = 8;
      }
    }
    same = 4294967295u;
    #pragma unroll
    for (int bit = 0; bit < 4; ++bit) {
      int mine = (expert_3 >> bit) & 1;
      uint ones = ballot_sync(4294967295u, mine);
      same = same & (mine == 1 ? ones : ~ones);
    }
    before = (int)__popc(same & ((1u << (uint)lane) - 1u));
    number = (int)__popc(same);
    if (expert_3 < 8) {
    }
    warp_sync();
    if (expert_3 < 8 && before == 0) {
      counts_ptr[warp * 8 + expert_3] = counts_ptr[warp * 8 + expert_3] + number;
    }
    warp_sync();
  }
  int running;
  cta_sync();
  int expert = thread;
  if (expert < 8) {
    running = 0;
    for (int warp_1 = 0; warp_1 < 32; ++warp_1) {
      int count = counts_ptr[warp_1 * 8 + expert];
      counts_ptr[warp_1 * 8 + expert] = running;
      running = running + count;
    }
    totals_ptr[expert] = running;
  }
  cta_sync();
  // the first block of each expert
  if (warp == 0) {
    int blocks;
    int carry;
    carry = 0;
    int expert_1 = lane;
    blocks = 0;
    if (expert_1 < 8) {
      blocks = (totals_ptr[expert_1] + 15) >> 4;
    }
    int own = blocks;
    #pragma unroll
    for (int level = 0; level < 5; ++level) {
      int lower = __shfl_up_sync(4294967295u, blocks, 1 << level, 32);
      if ((1 << level) <= lane) {
        blocks = blocks + lower;
      }
    }
    if (expert_1 < 8) {
      first_block_ptr[expert_1] = carry + blocks - own;
    }
    carry = carry + __shfl_sync(4294967295u, blocks, 31, 32);
    if (lane == 0) {
      first_block_ptr[8] = carry;
    }
  }
  cta_sync();
  int expert_2 = thread;
  if (expert_2 < 8) {
    for (int block = 0; block < first_block_ptr[expert_2 + 1] - first_block_ptr[expert_2]; ++block) {
      block_experts_ptr[block + first_block_ptr[expert_2]] = expert_2;
    }
  }
  if (thread == 0) {
    block_count_ptr[0] = first_block_ptr[8];
  }
  for (int step_1 = 0; step_1 < ((first_block_ptr[8] * 16 + 1023) >> 10); ++step_1) {
    if (step_1 * 1024 + thread < first_block_ptr[8] * 16) {
      sorted_pairs_ptr[step_1 * 1024 + (int)threadIdx.x] = -1;
    }
  }
  cta_sync();
  // pairs, in order, at their places
  int expert_4;
  uint same_1;
  int before_1;
  int number_1;
  for (int step_2 = 0; step_2 < ((end + 31 - first) >> 5); ++step_2) {
    int place_1 = step_2 * 32 + first + lane;
    expert_4 = 8;
    if (place_1 < end) {
      expert_4 = chosen_ptr[place_1 / slots * slots + place_1 % slots];
      if (expert_4 < 0 || 8 <= expert_4) {
        expert_4 = 8;
      }
    }
    same_1 = 4294967295u;
    #pragma unroll
    for (int bit_1 = 0; bit_1 < 4; ++bit_1) {
      int mine_1 = (expert_4 >> bit_1) & 1;
      uint ones_1 = ballot_sync(4294967295u, mine_1);
      same_1 = same_1 & (mine_1 == 1 ? ones_1 : ~ones_1);
    }
    before_1 = (int)__popc(same_1 & ((1u << (uint)lane) - 1u));
    number_1 = (int)__popc(same_1);
    if (expert_4 < 8) {
      sorted_pairs_ptr[first_block_ptr[expert_4] * 16 + counts_ptr[warp * 8 + expert_4] + before_1] = place_1;
    }
    warp_sync();
    if (expert_4 < 8 && before_1 == 0) {
      counts_ptr[warp * 8 + expert_4] = counts_ptr[warp * 8 + expert_4] + number_1;
    }
    warp_sync();
  }
}
