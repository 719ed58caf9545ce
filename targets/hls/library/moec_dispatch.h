// Process: one list of tokens per expert, then the work of the experts that have any, tile by tile.
#ifndef MOEC_DISPATCH_H
#define MOEC_DISPATCH_H
#include "moec_types.h"

namespace moec {

// Lists are written expert by expert ("is this token mine?"): one write per memory and cycle by construction, for any
// number of chosen experts. Every token goes to shared experts, which are the last; they need no list. An expert
// without tokens gets no job, so its weights are never read. A job is announced before the items of the one in front of
// it, so that loaders and products run one tile ahead.
//
// tiles: those of an expert. Lists have places for EXPERTS and SHARED; a layer that has fewer leaves some empty, but
// its experts are numbered without a gap, for that is how their weights lie in memory. passes: there is no first
// product, so none of its weights are read. length: how many tokens each expert got.
template <class Block>
inline void dispatch_lists(int tokens, int experts, int shared, int tiles, int shared_gate, bool passes,
                           hls::stream<typename types<Block>::route_t>& routes,
                           hls::stream<job_t> to_load_up[Block::MASTERS_UP],
                           hls::stream<job_t> to_load_down[Block::MASTERS_DOWN], hls::stream<job_t>& to_product,
                           hls::stream<item_t>& items,
                           ap_uint<16> length[sizes<Block>::ALL_EXPERTS]) {
#pragma HLS INLINE
    typedef sizes<Block> S;
    ap_uint<33> list[Block::EXPERTS][Block::MAX_TOKENS];  // gate, token
#pragma HLS ARRAY_PARTITION variable=list type=complete dim=1
#pragma HLS BIND_STORAGE variable=list type=ram_s2p impl=bram
    for (int e = 0; e < S::ALL_EXPERTS; e++) {
#pragma HLS UNROLL
        length[e] = e >= Block::EXPERTS && e - Block::EXPERTS < shared ? tokens : 0;
    }
    const int routed = experts > 0 ? tokens : 0;
dispatch_tokens:
    for (int t = 0; t < routed; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
#pragma HLS PIPELINE II=1 style=stp
        typename types<Block>::route_t route = routes.read();
        for (int e = 0; e < Block::EXPERTS; e++) {
#pragma HLS UNROLL
            bool mine = false;
            ap_uint<17> gate = 0;
            for (int j = 0; j < Block::SLOTS; j++) {
#pragma HLS UNROLL
                if (route.expert[j] == e) {
                    mine = true;
                    gate = route.gate[j];
                }
            }
            if (mine) {
                list[e][length[e]] = (ap_uint<33>(gate) << 16) | ap_uint<33>(t);
                length[e]++;
            }
        }
    }
    expert_t busy[S::ALL_EXPERTS];
#pragma HLS BIND_STORAGE variable=busy type=ram_s2p impl=lutram
    int busy_experts = 0;
dispatch_busy:
    for (int e = 0; e < S::ALL_EXPERTS; e++) {
#pragma HLS PIPELINE II=1 style=stp
        if (length[e] != 0) busy[busy_experts++] = e;
    }
    ap_uint<16> announced = 0;       // items of the job in front
    expert_t announced_place = 0; // of its expert among all lists
    int next = 0, tile = 0;
dispatch_jobs:
    for (int q = 0; q <= busy_experts * tiles; q++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=S::ALL_EXPERTS*Block::TILES+1
        job_t job;
        job.end = q == busy_experts * tiles;
        const expert_t place = job.end ? expert_t(0) : busy[next];
        job.expert = place < Block::EXPERTS ? place : expert_t(place - Block::EXPERTS + experts);
        job.count = job.end ? ap_uint<16>(0) : length[place];
        job.tile = tile;
        job.first = tile == 0;
        job.last = tile == tiles - 1;
        for (int m = 0; m < Block::MASTERS_UP; m++) {
#pragma HLS UNROLL
            if (!passes || job.end) to_load_up[m].write(job);
        }
        for (int m = 0; m < Block::MASTERS_DOWN; m++) {
#pragma HLS UNROLL
            to_load_down[m].write(job);
        }
        to_product.write(job);
    dispatch_items:
        for (int i = 0; i < int(announced); i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
#pragma HLS PIPELINE II=1 style=stp
            item_t item;
            if (announced_place < Block::EXPERTS) {
                const ap_uint<33> entry = list[announced_place][i];
                item.token = entry.range(15, 0);
                item.gate = entry.range(32, 16);
            } else {
                item.token = i;
                item.gate = shared_gate;
            }
            items.write(item);
        }
        announced = job.count;
        announced_place = place;
        next += job.last ? 1 : 0;
        tile = job.last ? 0 : tile + 1;
    }
}

template <class Block>
void dispatch(int tokens, int experts, int shared, int tiles, int shared_gate, bool passes,
              hls::stream<typename types<Block>::route_t>& routes, hls::stream<job_t> to_load_up[Block::MASTERS_UP],
              hls::stream<job_t> to_load_down[Block::MASTERS_DOWN],
              hls::stream<job_t>& to_product, hls::stream<item_t>& items) {
    ap_uint<16> length[sizes<Block>::ALL_EXPERTS];
#pragma HLS ARRAY_PARTITION variable=length type=complete
    dispatch_lists<Block>(tokens, experts, shared, tiles, shared_gate, passes, routes, to_load_up, to_load_down,
        to_product, items, length);
}

// The same, which also says how many tokens each expert got.
template <class Block>
void dispatch(int tokens, int experts, int shared, int tiles, int shared_gate, bool passes,
              hls::stream<typename types<Block>::route_t>& routes, hls::stream<job_t> to_load_up[Block::MASTERS_UP],
              hls::stream<job_t> to_load_down[Block::MASTERS_DOWN],
              hls::stream<job_t>& to_product, hls::stream<item_t>& items,
              ap_uint<32> loads[sizes<Block>::ALL_EXPERTS]) {
    ap_uint<16> length[sizes<Block>::ALL_EXPERTS];
#pragma HLS ARRAY_PARTITION variable=length type=complete
    dispatch_lists<Block>(tokens, experts, shared, tiles, shared_gate, passes, routes, to_load_up, to_load_down,
        to_product, items, length);
dispatch_loads:
    for (int e = 0; e < sizes<Block>::ALL_EXPERTS; e++) {
#pragma HLS PIPELINE II=1 style=stp
        loads[e] = length[e];
    }
}

}  // namespace moec
#endif
