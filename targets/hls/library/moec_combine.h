// Process: results times gates are summed by token.
#ifndef MOEC_COMBINE_H
#define MOEC_COMBINE_H
#include "moec_arithmetic.h"

namespace moec {

// outputs: int16, chunk after chunk of one token after the other. Experts come in the order of their numbers, so sums
// are reproducible; they are exact anyway. pools: outputs are one row, the sum over all tokens. It is taken at the end,
// a chunk after the other, for sums into the same row would wait for each other.
template <class Block>
void combine(int tokens, bool pools, hls::stream<job_t>& jobs, hls::stream<item_t>& items,
             hls::stream<typename types<Block>::results_t>& results,
             hls::stream<typename types<Block>::results_t>& outputs) {
    typedef sizes<Block> S;
    typedef lanes_t<S::COMBINED_BITS, Block::LANES> row_t;
    row_t rows[Block::MAX_TOKENS * S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=rows compact=bit
#pragma HLS BIND_STORAGE variable=rows type=ram_s2p impl=bram
combine_clear:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        row_t zeros;
        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
            zeros.lane[o] = 0;
        }
        rows[i] = zeros;
    }
combine_jobs:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=S::ALL_EXPERTS+1
        const job_t job = jobs.read();
        if (job.end) break;
        item_t item;
        item.token = 0;
        item.gate = 0;
    combine_items:
        for (int i = 0; i < int(job.count); i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        combine_outputs:
            for (int d = 0; d < S::WIDTH_CHUNKS; d++) {
#pragma HLS PIPELINE II=1 style=stp
// A token is in an expert's list at most once: chosen experts are distinct.
#pragma HLS DEPENDENCE variable=rows type=inter dependent=false
                if (d == 0) item = items.read();
                const typename types<Block>::results_t result = results.read();
                row_t row = rows[int(item.token) * S::WIDTH_CHUNKS + d];
                for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                    row.lane[o] += result.lane[o] * ap_int<18>(item.gate);
                }
                rows[int(item.token) * S::WIDTH_CHUNKS + d] = row;
            }
        }
    }
    ap_int<S::COMBINED_BITS> sums[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=sums type=complete
    const int words = tokens * S::WIDTH_CHUNKS;
    int place = 0, chunk = 0;
combine_outputs_of_tokens:
    for (int i = 0; i < words; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        const row_t row = rows[place];
        const bool first = !pools || place < S::WIDTH_CHUNKS, last = !pools || place >= words - S::WIDTH_CHUNKS;
        typename types<Block>::results_t output;
        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
            sums[o] = first ? row.lane[o] : ap_int<S::COMBINED_BITS>(sums[o] + row.lane[o]);
            const ap_int<S::COMBINED_BITS> rounded = (sums[o] + (1 << 15)) >> 16;
            output.lane[o] = saturate<16, S::COMBINED_BITS>(rounded);
        }
        if (last) outputs.write(output);
        if (pools && last) chunk++;
        place = !pools ? place + 1 : last ? chunk : place + S::WIDTH_CHUNKS;
    }
}

}  // namespace moec
#endif
