__forceinline__ __device__ void tcgen05_dealloc_cta_group(uint32_t __taddr, uint32_t __ncols) {
  asm volatile("tcgen05.dealloc.cta_group::2.sync.aligned.b32 %0, %1;" :  : "r"(__taddr), "r"(__ncols) : "memory");
}

__forceinline__ __device__ void warp_sync() {
    __syncwarp();
}

__forceinline__ __device__ void tcgen05_mma_cta_group_kind(uint32_t __d_tmem, uint64_t __a_desc, uint64_t __b_desc,
        uint32_t __idesc, uint32_t __disable_output_lane0, uint32_t __disable_output_lane1,
        uint32_t __disable_output_lane2, uint32_t __disable_output_lane3, uint32_t __disable_output_lane4,
        uint32_t __disable_output_lane5, uint32_t __disable_output_lane6, uint32_t __disable_output_lane7,
        uint32_t __enable_input_d) {
  asm volatile("{ .reg .pred ps0; setp.ne.b32 ps0, %12, 0; tcgen05.mma.cta_group::2.kind::f16 [%0], %1, %2, %3, "
      "{%4, %5, %6, %7, %8, %9, %10, %11}, ps0; }" :  : "r"(__d_tmem), "l"(__a_desc), "l"(__b_desc), "r"(__idesc),
      "r"(__disable_output_lane0), "r"(__disable_output_lane1), "r"(__disable_output_lane2),
      "r"(__disable_output_lane3), "r"(__disable_output_lane4), "r"(__disable_output_lane5),
      "r"(__disable_output_lane6), "r"(__disable_output_lane7), "r"(__enable_input_d));
}

__forceinline__ __device__ uint32_t elect_one_sync_op() {
    return tvm_builtin_elect_one_sync();
}

__forceinline__ __device__ void tcgen05_fence_fence__before_thread_sync() {
  asm volatile("tcgen05.fence::before_thread_sync;" :  :  : "memory");
}

__forceinline__ __device__ void hold(float* number) {
  asm volatile("" : "+f"(*number));
}

__forceinline__ __device__ void mbarrier_arrive(uint32_t __addr) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :  : "r"(__addr) : "memory");
}

__forceinline__ __device__ void tcgen05_ld_16x256b_x8(float __r[32], uint32_t __taddr) {
  asm volatile("tcgen05.ld.sync.aligned.16x256b.x8.b32 {%0, %1, %2, %3, %4, %5, %6, %7, "
               "%8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, "
               "%24, %25, %26, %27, %28, %29, %30, %31}, [%32];" : "=f"(__r[0]), "=f"(__r[1]), "=f"(__r[2]),
                   "=f"(__r[3]), "=f"(__r[4]), "=f"(__r[5]), "=f"(__r[6]), "=f"(__r[7]), "=f"(__r[8]), "=f"(__r[9]),
                   "=f"(__r[10]), "=f"(__r[11]), "=f"(__r[12]), "=f"(__r[13]), "=f"(__r[14]), "=f"(__r[15]),
                   "=f"(__r[16]), "=f"(__r[17]), "=f"(__r[18]), "=f"(__r[19]), "=f"(__r[20]), "=f"(__r[21]),
                   "=f"(__r[22]), "=f"(__r[23]), "=f"(__r[24]), "=f"(__r[25]), "=f"(__r[26]), "=f"(__r[27]),
                   "=f"(__r[28]), "=f"(__r[29]), "=f"(__r[30]), "=f"(__r[31]) : "r"(__taddr));
}

__forceinline__ __device__ unsigned int cluster_ctaid_x() {
  unsigned int ctaid;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(ctaid) :);
  return ctaid;
}

__forceinline__ __device__ void barrier_cluster_arrive_release() {
  asm volatile("barrier.cluster.arrive.release;" :  :  : "memory");
}

__forceinline__ __device__ int thread_rank() {
    namespace cg = cooperative_groups;
    return cg::this_thread_block().thread_rank();
}

__forceinline__ __device__ void tcgen05_encode_matrix_descriptor(uint64_t* desc, void* addr, int ldo, int sdo,
        int swizzle) {
  SmemDescriptor _desc{};  // value-init: reading uncovered pad bits is UB

  _desc.version_ = 1;
  _desc.lbo_mode_ = 0;

  switch (swizzle) {
    case 0: _desc.layout_type_ = uint8_t(0); break; // No swizzle
    case 1: _desc.layout_type_ = uint8_t(6); break; // 32B swizzle
    case 2: _desc.layout_type_ = uint8_t(4); break; // 64B swizzle
    case 3: _desc.layout_type_ = uint8_t(2); break; // 128B swizzle
    case 4: _desc.layout_type_ = uint8_t(1); break; // 128B_base32B swizzle
  }

  uint32_t start_address = __cvta_generic_to_shared(addr);
  _desc.start_address_ = static_cast<uint16_t>(start_address >> 4);

  constexpr uint8_t base_offset = 0;
  _desc.base_offset_ = base_offset;

  _desc.stride_byte_offset_  = static_cast<uint32_t>(sdo);
  _desc.leading_byte_offset_ = static_cast<uint32_t>(ldo);

  *desc = (uint64_t)_desc;
}

__forceinline__ __device__ void mbarrier_init(uint32_t __addr, uint32_t __count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :  : "r"(__addr), "r"(__count) : "memory");
}

__forceinline__ __device__ void tcgen05_commit_cta_group_multicast(uint32_t __mbar, uint16_t __mask) {
  asm volatile("tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;" :
      : "r"(__mbar), "h"(__mask) : "memory");
}

__forceinline__ __device__ void tcgen05_alloc_cta_group(uint32_t __dst, uint32_t __ncols) {
  asm volatile("tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%0], %1;" :  : "r"(__dst), "r"(__ncols) :
      "memory");
}

__forceinline__ __device__ void cp_async_bulk_tensor_2d_tile_cta_group(uint32_t __dst_mem, const void* __tmap,
        int32_t __coords0, int32_t __coords1, int32_t __coords2, int32_t __coords3, int32_t __coords4,
        uint32_t __mbar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes.cta_group::2 [%0], "
      "[%1, {%2, %3, %4, %5, %6}], [%7];" :  : "r"(__dst_mem), "l"(__tmap), "r"(__coords0), "r"(__coords1),
      "r"(__coords2), "r"(__coords3), "r"(__coords4), "r"(__mbar) : "memory");
}

__forceinline__ __device__ void fence_mbarrier_init_release_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" :  :  : "memory");
}

__forceinline__ __device__ void tcgen05_wait() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" :  :  : "memory");
}

__forceinline__ __device__ void tcgen05_relinquish_alloc_permit_cta_group() {
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::2.sync.aligned;" :  :  : "memory");
}

__forceinline__ __device__ void barrier_cluster_wait_acquire() {
  asm volatile("barrier.cluster.wait.acquire;" :  :  : "memory");
}

__forceinline__ __device__ int blocks_in_grid() {
  return gridDim.x;
}

__forceinline__ __device__ void mbarrier_wait(void* barrier, int phase) {
    unsigned int barrier_addr_int = __cvta_generic_to_shared(barrier);
    unsigned int ticks = 0x989680;
    asm volatile(
        "{\n"
        ".reg .pred                P1;\n"
        "LAB_WAIT:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 P1, [%0], %1, %2;\n"
        "@P1                       bra.uni DONE;\n"
        "bra.uni                   LAB_WAIT;\n"
        "DONE:\n"
        "}\n"
        :: "r"(barrier_addr_int), "r"(phase), "r"(ticks) : "memory");
}

__forceinline__ __device__ void mbarrier_arrive_expect_tx(uint32_t __addr, uint32_t __tx_count) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :  : "r"(__addr), "r"(__tx_count) : "memory");
}

__forceinline__ __device__ void tcgen05_fence_fence__after_thread_sync() {
  asm volatile("tcgen05.fence::after_thread_sync;" :  :  : "memory");
}

__forceinline__ __device__ void cp_async_bulk_tensor_3d_tile_cta_group(uint32_t __dst_mem, const void* __tmap,
        int32_t __coords0, int32_t __coords1, int32_t __coords2, uint32_t __mbar) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.cta_group::2 [%0], "
      "[%1, {%2, %3, %4}], [%5];" :  : "r"(__dst_mem), "l"(__tmap), "r"(__coords0), "r"(__coords1),
      "r"(__coords2), "r"(__mbar) : "memory");
}

__forceinline__ __device__ unsigned int cvta_generic_to_shared(void* p) {
    return __cvta_generic_to_shared(p);
}

__forceinline__ __device__ void mapa(uint32_t& __d, uint32_t __a, uint32_t __b) {
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(__d) : "r"(__a), "r"(__b));
}

extern "C" __global__ void __launch_bounds__(288, 1) kernel_kernel(float* __restrict__ bias_ptr,
        int* __restrict__ blocks_ptr, int* __restrict__ count_ptr, const __grid_constant__ CUtensorMap matrix_map,
        nv_bfloat16* __restrict__ out_ptr, int* __restrict__ pairs_ptr, const __grid_constant__ CUtensorMap rows_map,
        int B, int multiprocessors, int slots) {
  int first = (int)blockIdx.x;
  int rank = (int)cluster_ctaid_x();
  int thread = (int)threadIdx.x;
  extern __shared__ __align__(1024) uchar shared_ptr[];
  nv_bfloat16* row_tiles = (nv_bfloat16*)shared_ptr;
  nv_bfloat16* column_tiles = (nv_bfloat16*)shared_ptr + 65536;
  uint64_t* full = (uint64_t*)shared_ptr + 24576;
  uint64_t* empty = (uint64_t*)shared_ptr + 24584;
  uint64_t* computed = (uint64_t*)shared_ptr + 24592;
  uint64_t* drained = (uint64_t*)shared_ptr + 24594;
  uint* tensor_memory = (uint*)shared_ptr + 49192;
  int warp = thread >> 5;
  if (thread_rank() == 0) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
      mbarrier_init(cvta_generic_to_shared(&full[i]), 1u);
    }
  }
  if (thread_rank() == 0) {
    #pragma unroll
    for (int i_1 = 0; i_1 < 8; ++i_1) {
      mbarrier_init(cvta_generic_to_shared(&empty[i_1]), 1u);
    }
  }
  if (thread_rank() == 0) {
    #pragma unroll
    for (int i_2 = 0; i_2 < 2; ++i_2) {
      mbarrier_init(cvta_generic_to_shared(&computed[i_2]), 1u);
    }
  }
  if (thread_rank() == 0) {
    #pragma unroll
    for (int i_3 = 0; i_3 < 2; ++i_3) {
      mbarrier_init(cvta_generic_to_shared(&drained[i_3]), 8u);
    }
  }
  if (warp == 8) {
    tcgen05_alloc_cta_group(cvta_generic_to_shared(&tensor_memory[0]), 256u);
    tcgen05_relinquish_alloc_permit_cta_group();
  }
  fence_mbarrier_init_release_cluster();
  barrier_cluster_arrive_release();
  barrier_cluster_wait_acquire();
  uint memory = tensor_memory[0];
  if (thread < 128) {
    int stage;
    int phase;
    stage = 0;
    phase = 0;
    if ((thread & 31) < 8) {
      int blocks = count_ptr[0];
      for (int tile_index = max(first / 2, 0); tile_index < blocks; tile_index += blocks_in_grid() / 2) {
        int top = tile_index / 6 * 6;
        int height = min(6, blocks - top);
        int block = top + (tile_index - top) % height;
        int first_column = (tile_index - top) / height * 128;
        int expert = blocks_ptr[block];
        bool is_half = pairs_ptr[block * 256 + 128] < 0;
        alignas(64) int sources_ptr[4];
        #pragma unroll
        for (int i_4 = 0; i_4 < 4; ++i_4) {
          int row = (thread >> 5) * 32 + (thread & 31) * 4 + i_4;
          sources_ptr[i_4] = -1;
          if (row < (is_half ? 64 : 128)) {
            int pair = pairs_ptr[block * 256 + (int)cluster_ctaid_x() * (is_half ? 64 : 128) + row];
            if (0 <= pair) {
              sources_ptr[i_4] = pair / slots;
            }
          }
        }
        #pragma unroll 1
        for (int k_tile = 0; k_tile < 2; ++k_tile) {
          mbarrier_wait(&empty[stage], phase ^ 1);
          uint number;
          mapa(number, cvta_generic_to_shared(&full[stage]), 0u);
          if (thread == 0) {
            if (rank == 0) {
              mbarrier_arrive_expect_tx(cvta_generic_to_shared(&full[stage]), 49152u);
            }
            cp_async_bulk_tensor_3d_tile_cta_group(cvta_generic_to_shared(&column_tiles[stage * 4096]),
                (void*)((unsigned long long)(&matrix_map)), k_tile * 64, rank * 64 + first_column, expert, number);
          }
          cp_async_bulk_tensor_2d_tile_cta_group(
              cvta_generic_to_shared(&row_tiles[stage * 8192 + ((int)threadIdx.x >> 5) * 2048
              + ((int)threadIdx.x & 31) * 256]), (void*)((unsigned long long)(&rows_map)), k_tile * 64, sources_ptr[0],
              sources_ptr[1], sources_ptr[2], sources_ptr[3], number);
          stage = stage + 1;
          if (stage == 8) {
            stage = 0;
            phase = phase ^ 1;
          }
        }
      }
    }
  } else {
    if (thread < 256) {
      int warp_1 = (thread & 127) >> 5;
      int stage_1;
      int phase_1;
      stage_1 = 0;
      phase_1 = 0;
      int blocks_1 = count_ptr[0];
      for (int tile_index_1 = max(first / 2, 0); tile_index_1 < blocks_1; tile_index_1 += blocks_in_grid() / 2) {
        int top_1 = tile_index_1 / 6 * 6;
        int height_1 = min(6, blocks_1 - top_1);
        int block_1 = top_1 + (tile_index_1 - top_1) % height_1;
        int first_column_1 = (tile_index_1 - top_1) / height_1 * 128;
        int expert_1 = blocks_ptr[block_1];
        bool is_half_1 = pairs_ptr[block_1 * 256 + 128] < 0;
        mbarrier_wait(&computed[stage_1], phase_1 ^ 0);
        tcgen05_fence_fence__after_thread_sync();
        #pragma unroll 1
        for (int part = 0; part < (is_half_1 ? 1 : 2); ++part) {
          alignas(64) float sums_ptr[64];
          uint address = memory + (uint)(warp_1 * 2097152 + stage_1 * 128 + part * 64);
          tcgen05_ld_16x256b_x8(sums_ptr, address);
          tcgen05_ld_16x256b_x8(&sums_ptr[32], address + 1048576u);
          tcgen05_wait();
          #pragma unroll
          for (int i_5 = 0; i_5 < 64; ++i_5) {
            hold(&sums_ptr[i_5]);
          }
          if (part == (is_half_1 ? 1 : 2) - 1) {
            tcgen05_fence_fence__before_thread_sync();
            if (thread % 32 == 0) {
              uint number_1;
              mapa(number_1, cvta_generic_to_shared(&drained[stage_1]), 0u);
              mbarrier_arrive(number_1);
            }
          }
          if (part * 64 + first_column_1 + (is_half_1 ? (warp_1 >> 1) * 64 : 0) < 128) {
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
              #pragma unroll
              for (int i_6 = 0; i_6 < 2; ++i_6) {
                #pragma unroll
                for (int lower = 0; lower < 2; ++lower) {
                  int tile_row = (is_half_1 ? warp_1 & 1 : warp_1) * 32 + i_6 * 16 + lower * 8 + ((thread & 31) >> 2)
                      + rank * (is_half_1 ? 64 : 128);
                  int pair_1 = pairs_ptr[block_1 * 256 + tile_row];
                  int64_t row_1 = (int64_t)block_1 * 256 + tile_row;
                  if (0 <= pair_1) {
                    alignas(64) float values_ptr[2];
                    int first_1 = part * 32 + ((first_column_1 + (is_half_1 ? (warp_1 >> 1) * 64 : 0)) >> 1);
                    int output = j * 8 + (thread & 3) * 2 + first_1;
                    int column = part * 64 + j * 16 + (thread & 3) * 2 + first_column_1
                        + (is_half_1 ? (warp_1 >> 1) * 64 : 0);
                    int up_column = part * 64 + j * 16 + (thread & 3) * 2 + first_column_1
                        + (is_half_1 ? (warp_1 >> 1) * 64 : 0) + 8;
                    #pragma unroll
                    for (int v = 0; v < 2; ++v) {
                      float gate = sums_ptr[i_6 * 32 + j * 8 + lower * 2 + v] + bias_ptr[expert_1 * 128 + v + column];
                      float up = sums_ptr[i_6 * 32 + j * 8 + lower * 2 + v + 4]
                          + bias_ptr[expert_1 * 128 + v + up_column];
                      values_ptr[v] = gate * __fdividef(1.0f, 1.0f + __expf(gate * -1.0f)) * up;
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
        }
        stage_1 = stage_1 + 1;
        if (stage_1 == 2) {
          stage_1 = 0;
          phase_1 = phase_1 ^ 1;
        }
      }
    } else {
      int stage_2;
      int phase_2;
      stage_2 = 0;
      phase_2 = 0;
      int stage_3;
      int phase_3;
      stage_3 = 0;
      phase_3 = 0;
      if (rank == 0) {
        int blocks_2 = count_ptr[0];
        for (int tile_index_2 = max(first / 2, 0); tile_index_2 < blocks_2; tile_index_2 += blocks_in_grid() / 2) {
          int top_2 = tile_index_2 / 6 * 6;
          int height_2 = min(6, blocks_2 - top_2);
          int block_2 = top_2 + (tile_index_2 - top_2) % height_2;
          bool is_half_2 = pairs_ptr[block_2 * 256 + 128] < 0;
          alignas(64) uint64_t left_ptr[1];
          alignas(64) uint64_t right_ptr[1];
          uint sums = memory + (uint)(stage_3 * 128);
          mbarrier_wait(&drained[stage_3], phase_3 ^ 1);
          #pragma unroll 1
          for (int k_tile_1 = 0; k_tile_1 < 2; ++k_tile_1) {
            mbarrier_wait(&full[stage_2], phase_2 ^ 0);
            tcgen05_fence_fence__after_thread_sync();
            tcgen05_encode_matrix_descriptor(&left_ptr[0], &row_tiles[stage_2 * 8192], 1, 64, 3);
            tcgen05_encode_matrix_descriptor(&right_ptr[0], &column_tiles[stage_2 * 4096], 1, 64, 3);
            if (elect_one_sync_op()) {
              #pragma unroll
              for (int step = 0; step < 4; ++step) {
                tcgen05_mma_cta_group_kind(sums, left_ptr[0] + (uint64_t)(step * 2),
                    right_ptr[0] + (uint64_t)(step * 2), is_half_2 ? 136316048u : 270533776u, 0u, 0u, 0u, 0u, 0u, 0u,
                    0u, 0u, 0 < k_tile_1 || 0 < step);
              }
              tcgen05_commit_cta_group_multicast(cvta_generic_to_shared(&empty[stage_2]), (ushort)3);
            }
            warp_sync();
            stage_2 = stage_2 + 1;
            if (stage_2 == 8) {
              stage_2 = 0;
              phase_2 = phase_2 ^ 1;
            }
          }
          if (elect_one_sync_op()) {
            tcgen05_commit_cta_group_multicast(cvta_generic_to_shared(&computed[stage_3]), (ushort)3);
          }
          warp_sync();
          stage_3 = stage_3 + 1;
          if (stage_3 == 2) {
            stage_3 = 0;
            phase_3 = phase_3 ^ 1;
          }
        }
      }
    }
  }
  barrier_cluster_arrive_release();
  barrier_cluster_wait_acquire();
  if (warp == 8) {
    tcgen05_dealloc_cta_group(tensor_memory[0], 256u);
  }
}
