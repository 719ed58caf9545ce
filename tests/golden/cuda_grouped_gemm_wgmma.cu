__forceinline__ __device__ void wgmma_wait_group_1() {
  asm volatile("wgmma.wait_group.sync.aligned 1;" :  :  : "memory");
}

__forceinline__ __device__ void hold(float* number) {
  asm volatile("" : "+f"(*number));
}

__forceinline__ __device__ void wgmma_mma_async_m64n128k16_f32_bf16_bf16(float __d[64], uint64_t __a_desc,
        uint64_t __b_desc, uint32_t __scale_d) {
  asm volatile("{ .reg .pred ps0; setp.ne.b32 ps0, %66, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, "
               "%8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, "
               "%24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, "
               "%40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, "
               "%56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, ps0, 1, 1, 0, 0; }"
               : "+f"(__d[0]), "+f"(__d[1]), "+f"(__d[2]), "+f"(__d[3]), "+f"(__d[4]), "+f"(__d[5]), "+f"(__d[6]),
                   "+f"(__d[7]),
                 "+f"(__d[8]), "+f"(__d[9]), "+f"(__d[10]), "+f"(__d[11]), "+f"(__d[12]), "+f"(__d[13]), "+f"(__d[14]),
                 "+f"(__d[15]),
                 "+f"(__d[16]), "+f"(__d[17]), "+f"(__d[18]), "+f"(__d[19]), "+f"(__d[20]), "+f"(__d[21]),
                 "+f"(__d[22]), "+f"(__d[23]),
                 "+f"(__d[24]), "+f"(__d[25]), "+f"(__d[26]), "+f"(__d[27]), "+f"(__d[28]), "+f"(__d[29]),
                 "+f"(__d[30]), "+f"(__d[31]),
                 "+f"(__d[32]), "+f"(__d[33]), "+f"(__d[34]), "+f"(__d[35]), "+f"(__d[36]), "+f"(__d[37]),
                 "+f"(__d[38]), "+f"(__d[39]),
                 "+f"(__d[40]), "+f"(__d[41]), "+f"(__d[42]), "+f"(__d[43]), "+f"(__d[44]), "+f"(__d[45]),
                 "+f"(__d[46]), "+f"(__d[47]),
                 "+f"(__d[48]), "+f"(__d[49]), "+f"(__d[50]), "+f"(__d[51]), "+f"(__d[52]), "+f"(__d[53]),
                 "+f"(__d[54]), "+f"(__d[55]),
                 "+f"(__d[56]), "+f"(__d[57]), "+f"(__d[58]), "+f"(__d[59]), "+f"(__d[60]), "+f"(__d[61]),
                 "+f"(__d[62]), "+f"(__d[63]) : "l"(__a_desc), "l"(__b_desc), "r"(__scale_d));
}

__forceinline__ __device__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" :  :  : "memory");
}

__forceinline__ __device__ void cp_async_wait_group_0() {
  asm volatile("cp.async.wait_group 0;" :  :  : "memory");
}

__forceinline__ __device__ int thread_rank() {
    namespace cg = cooperative_groups;
    return cg::this_thread_block().thread_rank();
}

__forceinline__ __device__ unsigned int cvta_generic_to_shared(void* p) {
    return __cvta_generic_to_shared(p);
}

__forceinline__ __device__ void mbarrier_arrive(uint32_t __addr, uint32_t __count) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" :  : "r"(__addr), "r"(__count) : "memory");
}

__forceinline__ __device__ void fence_mbarrier_init_release_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" :  :  : "memory");
}

__forceinline__ __device__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" :  :  : "memory");
}

__forceinline__ __device__ void setmaxnreg_dec_40() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;" :  :  : "memory");
}

__forceinline__ __device__ void mbarrier_init(uint32_t __addr, uint32_t __count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" :  : "r"(__addr), "r"(__count) : "memory");
}

__forceinline__ __device__ void cp_async_cg(uint32_t __dst_mem, const void* __src_mem, uint32_t __src_size) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" :  : "r"(__dst_mem), "l"(__src_mem),
      "r"(__src_size) : "memory");
}

__forceinline__ __device__ void cta_sync() {
    __syncthreads();
}

__forceinline__ __device__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" :  :  : "memory");
}

__forceinline__ __device__ void ptx_wgmma_encode_matrix_descriptor(uint64_t* desc, void* addr, int ldo, int sdo,
        int swizzle) {
  GmmaDescriptor _desc{};  // value-init: reading uncovered pad bits is UB

  switch (swizzle) {
    case 0: _desc.bitfield.layout_type_ = uint8_t(0); break; // No swizzle
    case 1: _desc.bitfield.layout_type_ = uint8_t(3); break; // 32B swizzle
    case 2: _desc.bitfield.layout_type_ = uint8_t(2); break; // 64B swizzle
    case 3: _desc.bitfield.layout_type_ = uint8_t(1); break; // 128B swizzle
  }

  uint32_t start_address = __cvta_generic_to_shared(addr);
  _desc.bitfield.start_address_ = static_cast<uint16_t>(start_address >> 4);

  constexpr uint8_t base_offset = 0;
  _desc.bitfield.base_offset_ = base_offset;

  _desc.bitfield.stride_byte_offset_  = static_cast<uint32_t>(sdo);
  _desc.bitfield.leading_byte_offset_ = static_cast<uint32_t>(ldo);

  *desc = (uint64_t)_desc;
}

__forceinline__ __device__ int blocks_in_grid() {
  return gridDim.x;
}

__forceinline__ __device__ void wgmma_wait_group_0() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" :  :  : "memory");
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

__forceinline__ __device__ void setmaxnreg_inc_232() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;" :  :  : "memory");
}

__forceinline__ __device__ void mbarrier_arrive_expect_tx(uint32_t __addr, uint32_t __tx_count) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :  : "r"(__addr), "r"(__tx_count) : "memory");
}

__forceinline__ __device__ void cp_async_bulk_tensor_3d(uint32_t __dst_mem, const void* __tmap, int32_t __coords0,
        int32_t __coords1, int32_t __coords2, uint32_t __mbar) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" :
      : "r"(__dst_mem), "l"(__tmap), "r"(__coords0), "r"(__coords1), "r"(__coords2), "r"(__mbar) : "memory");
}

__forceinline__ __device__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" :  : );
}

__forceinline__ __device__ void cp_async_wait_group_2() {
  asm volatile("cp.async.wait_group 2;" :  :  : "memory");
}

extern "C" __global__ void __launch_bounds__(384, 1) kernel_kernel(float* __restrict__ bias_ptr,
        int* __restrict__ blocks_ptr, int* __restrict__ count_ptr, const __grid_constant__ CUtensorMap matrix_map,
        nv_bfloat16* __restrict__ out_ptr, int* __restrict__ pairs_ptr, nv_bfloat16* __restrict__ rows_ptr, int B,
        int multiprocessors, int slots) {
  int first = (int)blockIdx.x;
  int thread = (int)threadIdx.x;
  extern __shared__ __align__(1024) uchar shared_ptr[];
  nv_bfloat16* row_tiles = (nv_bfloat16*)shared_ptr;
  nv_bfloat16* column_tiles = (nv_bfloat16*)shared_ptr + 32768;
  uint64_t* full = (uint64_t*)shared_ptr + 24576;
  uint64_t* empty = (uint64_t*)shared_ptr + 24584;
  uint64_t* turns = (uint64_t*)shared_ptr + 24592;
  if (thread_rank() == 0) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
      mbarrier_init(cvta_generic_to_shared(&full[i]), 129u);
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
      mbarrier_init(cvta_generic_to_shared(&turns[i_2]), 4u);
    }
  }
  fence_mbarrier_init_release_cluster();
  cta_sync();
  if (thread < 128) {
    setmaxnreg_dec_40();
    int stage;
    int phase;
    stage = 0;
    phase = 0;
    int started;
    started = 0;
    int blocks = count_ptr[0];
    for (int tile_index = max(first, 0); tile_index < blocks; tile_index += blocks_in_grid()) {
      int top = tile_index / 16 * 16;
      int height = min(16, blocks - top);
      int block = top + (tile_index - top) % height;
      int first_column = (tile_index - top) / height * 128;
      int expert = blocks_ptr[block];
      alignas(64) int sources_ptr[4];
      #pragma unroll
      for (int i_3 = 0; i_3 < 4; ++i_3) {
        int pair = pairs_ptr[block * 64 + i_3 * 16 + ((int)threadIdx.x >> 3)];
        sources_ptr[i_3] = -1;
        if (0 <= pair) {
          sources_ptr[i_3] = pair / slots;
        }
      }
      for (int k_tile = 0; k_tile < 2; ++k_tile) {
        mbarrier_wait(&empty[stage], phase ^ 1);
        if (thread == 0) {
          mbarrier_arrive_expect_tx(cvta_generic_to_shared(&full[stage]), 16384u);
          cp_async_bulk_tensor_3d(cvta_generic_to_shared(&column_tiles[stage * 8192]),
              (void*)((unsigned long long)(&matrix_map)), k_tile * 64, first_column, expert,
              cvta_generic_to_shared(&full[stage]));
        }
        int k = k_tile * 64 + (thread & 7) * 8;
        #pragma unroll
        for (int i_4 = 0; i_4 < 4; ++i_4) {
          int64_t row = (int64_t)max(sources_ptr[i_4], 0);
          cp_async_cg(cvta_generic_to_shared(&row_tiles[stage * 4096 + i_4 * 1024 + ((int)threadIdx.x >> 3) * 64
              + (((int)threadIdx.x & 7) ^ (((int)threadIdx.x & 63) >> 3)) * 8]), &rows_ptr[row * 128 + k], 0
              <= sources_ptr[i_4] ? 16u : 0u);
        }
        cp_async_commit_group();
        if (started == 2) {
          cp_async_wait_group_2();
          fence_proxy_async();
          mbarrier_arrive(cvta_generic_to_shared(&full[stage < 2 ? stage + 6 : stage - 2]), 1u);
        }
        started = min(started + 1, 2);
        stage = stage + 1;
        if (stage == 8) {
          stage = 0;
          phase = phase ^ 1;
        }
      }
    }
    cp_async_wait_group_0();
    fence_proxy_async();
    #pragma unroll
    for (int i_5 = 0; i_5 < 2; ++i_5) {
      if (2 <= started + i_5) {
        mbarrier_arrive(cvta_generic_to_shared(&full[stage + i_5 < 2 ? i_5 + stage + 6 : stage + i_5 - 2]), 1u);
      }
    }
  } else {
    setmaxnreg_inc_232();
    int consumer = (thread >> 7) - 1;
    int warp_row = ((thread & 127) >> 5) * 16;
    int stage_1;
    int phase_1;
    stage_1 = 0;
    phase_1 = 0;
    int tiles;
    tiles = 0;
    int blocks_1 = count_ptr[0];
    for (int tile_index_1 = max(first, 0); tile_index_1 < blocks_1; tile_index_1 += blocks_in_grid()) {
      int top_1 = tile_index_1 / 16 * 16;
      int height_1 = min(16, blocks_1 - top_1);
      int block_1 = top_1 + (tile_index_1 - top_1) % height_1;
      int first_column_1 = (tile_index_1 - top_1) / height_1 * 128;
      int expert_1 = blocks_ptr[block_1];
      if (tiles % 2 == consumer) {
        alignas(64) float sums_ptr[64];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
          #pragma unroll
          for (int v = 0; v < 4; ++v) {
            sums_ptr[j * 4 + v] = 0.0f;
          }
        }
        stage_1 = tiles % 4 * 2;
        phase_1 = tiles % 8 / 4;
        mbarrier_wait(&turns[consumer], ((tiles / 2 + (consumer == 0 ? 1 : 0)) % 2) ^ 0);
        alignas(64) uint64_t left_ptr[1];
        alignas(64) uint64_t right_ptr[1];
        #pragma unroll 1
        for (int k_tile_1 = 0; k_tile_1 < 2; ++k_tile_1) {
          mbarrier_wait(&full[stage_1], phase_1 ^ 0);
          ptx_wgmma_encode_matrix_descriptor(&left_ptr[0], &row_tiles[stage_1 * 4096], 1, 64, 3);
          ptx_wgmma_encode_matrix_descriptor(&right_ptr[0], &column_tiles[stage_1 * 8192], 1, 64, 3);
          wgmma_fence();
          #pragma unroll
          for (int step = 0; step < 4; ++step) {
            wgmma_mma_async_m64n128k16_f32_bf16_bf16(sums_ptr, left_ptr[0] + (uint64_t)(step * 2),
                right_ptr[0] + (uint64_t)(step * 2), 1u);
          }
          wgmma_commit_group();
          wgmma_wait_group_1();
          if (0 < k_tile_1) {
            if (thread % 128 == 0) {
              mbarrier_arrive(cvta_generic_to_shared(&empty[stage_1 < 1 ? stage_1 + 7 : stage_1 - 1]), 1u);
            }
          }
          stage_1 = stage_1 + 1;
          if (stage_1 == 8) {
            stage_1 = 0;
            phase_1 = phase_1 ^ 1;
          }
        }
        if (thread % 32 == 0) {
          mbarrier_arrive(cvta_generic_to_shared(&turns[1 - consumer]), 1u);
        }
        wgmma_wait_group_0();
        #pragma unroll
        for (int i_6 = 0; i_6 < 64; ++i_6) {
          hold(&sums_ptr[i_6]);
        }
        if (thread % 128 == 0) {
          mbarrier_arrive(cvta_generic_to_shared(&empty[stage_1 < 1 ? stage_1 + 7 : stage_1 - 1]), 1u);
        }
        #pragma unroll
        for (int j_1 = 0; j_1 < 8; ++j_1) {
          #pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            int tile_row = lower * 8 + ((thread & 31) >> 2) + warp_row;
            int pair_1 = pairs_ptr[block_1 * 64 + tile_row];
            int64_t row_1 = (int64_t)block_1 * 64 + tile_row;
            if (0 <= pair_1) {
              alignas(64) float values_ptr[2];
              int first_1 = first_column_1 >> 1;
              int output = j_1 * 8 + (thread & 3) * 2 + first_1;
              int column = j_1 * 16 + (thread & 3) * 2 + first_column_1;
              int up_column = j_1 * 16 + (thread & 3) * 2 + first_column_1 + 8;
              #pragma unroll
              for (int v_1 = 0; v_1 < 2; ++v_1) {
                float gate = sums_ptr[j_1 * 8 + lower * 2 + v_1] + bias_ptr[expert_1 * 128 + v_1 + column];
                float up = sums_ptr[j_1 * 8 + lower * 2 + v_1 + 4] + bias_ptr[expert_1 * 128 + v_1 + up_column];
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
      tiles = tiles + 1;
    }
  }
}
