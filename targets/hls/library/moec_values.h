// Processes: what a query gets of a head's values, by the weights of its keys.
#ifndef MOEC_VALUES_H
#define MOEC_VALUES_H
#include "moec_scores.h"

namespace moec {

// Per head of keys: values come first and are kept as score_keys keeps keys, so that a step reads the values of LANES
// keys in LANES channels. mixed: weighted sums of LANES channels at a time.
template <class Block>
void mix_values(int past, int window, int tokens, hls::stream<typename types<Block>::chunk_t>& rows,
                hls::stream<typename attention_types<Block>::weights_t>& weights,
                hls::stream<typename attention_types<Block>::mixed_t>& mixed) {
    typedef attention_sizes<Block> S;
    typedef typename types<Block>::chunk_t chunk_t;
    typedef ap_int<S::MIXED_BITS> sum_t;
    chunk_t values[Block::LANES][S::KEY_GROUPS * S::CHUNKS];
#pragma HLS AGGREGATE variable=values compact=bit
#pragma HLS ARRAY_PARTITION variable=values type=complete dim=1
#pragma HLS BIND_STORAGE variable=values type=ram_s2p impl=bram
    typename attention_types<Block>::weights_t kept[S::KEY_GROUPS];  // of the current query
#pragma HLS AGGREGATE variable=kept compact=bit
#pragma HLS BIND_STORAGE variable=kept type=ram_s2p impl=lutram
    sum_t sums[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=sums type=complete
    const int seen = seen_of<Block>(past, window), back = groups_back<Block>(window);
    const int count = tokens > 0 ? seen + tokens : 0;
    const int steps = Block::SHARING * groups_of_all<Block>(seen, tokens, back) * S::CHUNKS;
mix_heads:
    for (int h = 0; h < S::KEY_HEADS; h++) {
    mix_read_values:
        for (int t = 0; t < count; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_KEYS
        mix_read_value:
            for (int c = 0; c < S::CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                values[t % Block::LANES][t / Block::LANES * S::CHUNKS + c] = rows.read();
            }
        }
        int begin = first_group<Block>(seen, back), groups = groups_of<Block>(count, seen);
        int group = begin, chunk = 0, position = seen;
    // One loop with counters, as in score_keys.
    mix_steps:
        for (int step = 0; step < steps; step++) {
#pragma HLS LOOP_TRIPCOUNT min=S::CHUNKS max=Block::SHARING*S::MOST_STEPS
#pragma HLS PIPELINE II=1 style=stp
            typename attention_types<Block>::weights_t weight = kept[group];
            if (chunk == 0) {
                weight = weights.read();
                kept[group] = weight;
            }
            const int place = group * S::CHUNKS + chunk;
            typename attention_types<Block>::mixed_t result;
            for (int r = 0; r < Block::LANES; r += 2) {
#pragma HLS UNROLL
                chunk_t row0, row1;
                for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
                    // Behind the query, beyond the last token, or in front of the window is nonsense, whose weight is
                    // 0.
                    row0.lane[i] = values[i][place].lane[r];
                    row1.lane[i] = values[i][place].lane[r + 1];
                }
                sum_t sum0, sum1;
                dot_pair<Block, S::MIXED_BITS>(weight, row0, 0, row1, 0, sum0, sum1);
                sums[r] = group == begin ? sum0 : sum_t(sums[r] + sum0);
                sums[r + 1] = group == begin ? sum1 : sum_t(sums[r + 1] + sum1);
                result.lane[r] = sums[r];
                result.lane[r + 1] = sums[r + 1];
            }
            if (group == groups - 1) {
                mixed.write(result);
                if (chunk == S::CHUNKS - 1) position = position == count - 1 ? seen : position + 1;
                chunk = chunk == S::CHUNKS - 1 ? 0 : chunk + 1;
                begin = first_group<Block>(position, back);
                groups = groups_of<Block>(count, position);
                group = begin;
            } else {
                group++;
            }
        }
    }
}

// Sums become numbers of the output product, divided by the sum of their weights. A process of its own, so that the
// divider's depth delays a query but not the ones behind it.
template <class Block>
void scale_values(int tokens, hls::stream<typename attention_types<Block>::mixed_t>& mixed,
                  hls::stream<typename attention_types<Block>::reciprocal_t>& reciprocals,
                  hls::stream<typename types<Block>::chunk_t>& attended) {
    typedef attention_sizes<Block> S;
    typename attention_types<Block>::reciprocal_t reciprocal = 0;
scale_queries:
    for (int q = 0; q < tokens * Block::HEADS; q++) {
#pragma HLS LOOP_TRIPCOUNT min=Block::HEADS max=Block::MAX_TOKENS*Block::HEADS
    scale_chunks:
        for (int c = 0; c < S::CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
            if (c == 0) reciprocal = reciprocals.read();
            const typename attention_types<Block>::mixed_t sums = mixed.read();
            typename types<Block>::chunk_t chunk;
            for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                ap_int<S::MIXED_BITS + 22> product = sums.lane[o] * ap_int<21>(reciprocal);
                product += ap_int<S::MIXED_BITS + 22>(1) << (Block::MIXED_SHIFT - 1);
                chunk.lane[o] = saturate<8, S::MIXED_BITS + 22>(product >> Block::MIXED_SHIFT);
            }
            attended.write(chunk);
        }
    }
}

}  // namespace moec
#endif
