// Groups of inputs that share a scale: their sums are integers, which are scaled and then added to those of other
// groups.
#ifndef MOEC_GROUPS_H
#define MOEC_GROUPS_H
#include "moec_weights.h"

namespace moec {

// As store_parameters has it.
template <int STRIPES, int BANKS, int WORDS>
inline void store_multipliers(int stripe, int beat, const beat_t& data,
        multipliers_t multipliers[STRIPES][BANKS][WORDS]) {
#pragma HLS INLINE
    multipliers_t word;
    for (int i = 0; i < MULTIPLIERS_PER_BEAT; i++) {
#pragma HLS UNROLL
        word.of[i].range(15, 0) = data.range(16 * i + 15, 16 * i);
    }
    multipliers[stripe][beat % BANKS][beat / BANKS] = word;
}

// Those of all rows for one group. Where rows are few, neighbouring places share a word.
template <int ROWS, int STRIPES, int BANKS, int WORDS>
inline void read_multipliers(const multipliers_t multipliers[STRIPES][BANKS][WORDS], int place,
        ap_int<16> of_row[ROWS]) {
#pragma HLS INLINE
    const int PER_BANK = ROWS / (STRIPES * BANKS), PLACES = MULTIPLIERS_PER_BEAT / PER_BANK;
    for (int b = 0; b < STRIPES * BANKS; b++) {
#pragma HLS UNROLL
        const multipliers_t word = multipliers[b % STRIPES][b / STRIPES][place / PLACES];
        for (int i = 0; i < PER_BANK; i++) {
#pragma HLS UNROLL
            of_row[b * PER_BANK + i] = word.of[place % PLACES * PER_BANK + i];
        }
    }
}

// One step of an array. Without groups it adds to totals what it multiplies. With groups it adds to sums, which begin
// with a group and, at its end, are scaled to the steps of totals.
template <class Block, int ROWS, int SHIFT, int SUM_BITS, int TOTAL_BITS>
inline void accumulate(int chunk, int chunks, const typename types<Block>::chunk_t& inputs,
                       const typename types<Block>::weights_t weights[ROWS / sizes<Block>::ROWS_PER_BEAT],
                       const ap_int<16> multipliers[ROWS], ap_int<SUM_BITS> sums[ROWS],
                       ap_int<TOTAL_BITS> totals[ROWS]) {
#pragma HLS INLINE
    const int LAST = sizes<Block>::GROUP_CHUNKS - 1;
    if (!sizes<Block>::GROUPED) {
        multiply_array<Block, ROWS, TOTAL_BITS>(inputs, weights, totals);
    } else {
        for (int r = 0; r < ROWS; r++) {
#pragma HLS UNROLL
            if (chunk % sizes<Block>::GROUP_CHUNKS == 0) sums[r] = 0;
        }
        multiply_array<Block, ROWS, SUM_BITS>(inputs, weights, sums);
        for (int r = 0; r < ROWS; r++) {
#pragma HLS UNROLL
            if (chunk % sizes<Block>::GROUP_CHUNKS == LAST || chunk == chunks - 1) {
                const ap_int<SUM_BITS + 16> scaled = sums[r] * multipliers[r];
                totals[r] += shift_down<SHIFT>(scaled);
            }
        }
    }
}

// What a row comes to: its total times the channel's multiplier, or, where groups had theirs, without their fraction.
template <class Block, int BITS, int SHIFT, int TOTAL_BITS>
inline ap_int<BITS> result_of(const ap_int<TOTAL_BITS>& total, const ap_uint<16>& multiplier) {
#pragma HLS INLINE
    if (sizes<Block>::GROUPED) return saturate<BITS>(shift_down<Block::FRACTION_BITS>(total));
    return requantize<BITS, SHIFT, TOTAL_BITS>(total, multiplier);
}

}  // namespace moec
#endif
