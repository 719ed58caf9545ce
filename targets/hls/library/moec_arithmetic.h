// Integer arithmetic: lanes of packed words, requantisation, and two products per multiplier.
#ifndef MOEC_ARITHMETIC_H
#define MOEC_ARITHMETIC_H
#include "moec_types.h"

namespace moec {

// The first LANES numbers of a packed word.
template <int BITS, int LANES>
inline lanes_t<BITS, LANES> unpack(const beat_t& word) {
#pragma HLS INLINE
    lanes_t<BITS, LANES> numbers;
    for (int i = 0; i < LANES; i++) {
#pragma HLS UNROLL
        numbers.lane[i].range(BITS - 1, 0) = word.range(BITS * i + BITS - 1, BITS * i);
    }
    return numbers;
}

// value, or the nearest number of BITS bits.
template <int BITS, int WIDE>
inline ap_int<BITS> saturate(const ap_int<WIDE>& value) {
#pragma HLS INLINE
    const ap_int<WIDE> most = (ap_int<WIDE>(1) << (BITS - 1)) - 1;
    const ap_int<WIDE> least = -(ap_int<WIDE>(1) << (BITS - 1));
    if (value > most) return ap_int<BITS>(most);
    if (value < least) return ap_int<BITS>(least);
    return ap_int<BITS>(value);
}

// Bits that hold a value of WIDE bits and the half that rounds it.
constexpr int with_half(int wide, int shift) { return wide > shift ? wide + 1 : shift + 2; }

// value / 2^SHIFT, rounded half up.
template <int SHIFT, int WIDE>
inline ap_int<with_half(WIDE, SHIFT)> shift_down(const ap_int<WIDE>& value) {
#pragma HLS INLINE
    const ap_int<with_half(WIDE, SHIFT)> sum = value + (ap_int<with_half(WIDE, SHIFT)>(1) << (SHIFT - 1));
    return sum >> SHIFT;
}

// value * multiplier / 2^SHIFT, rounded half up and saturated. One DSP48E2 while value has at most 27 bits, else two.
template <int BITS, int SHIFT, int WIDE>
inline ap_int<BITS> requantize(const ap_int<WIDE>& value, const ap_uint<16>& multiplier) {
#pragma HLS INLINE
    const ap_int<WIDE + 17> product = value * ap_int<17>(multiplier);
    return saturate<BITS>(shift_down<SHIFT>(product));
}

// The dot products of LANES inputs with two rows of weights, which begin at row0 and row1 of a word. Both weights of a
// lane share one 27 x 18 multiplier (AMD WP486): the number weight1 * 2^18 + weight0 times the input holds both
// products. Four products are summed before they are taken apart: 4 * 255 * 128 < 2^17, so the lower 18 bits cannot
// overflow, whether inputs are int8 or uint8.
template <class Block, int SUM_BITS, class Inputs, class Weights>
inline void dot_pair(const Inputs& inputs, const Weights& word0, int row0, const Weights& word1, int row1,
                     ap_int<SUM_BITS>& sum0, ap_int<SUM_BITS>& sum1) {
#pragma HLS INLINE
    sum0 = 0;
    sum1 = 0;
    for (int group = 0; group < Block::LANES; group += 4) {
#pragma HLS UNROLL
        ap_int<48> packed = 0;
        for (int i = group; i < group + 4; i++) {
#pragma HLS UNROLL
            ap_int<27> pair = (ap_int<27>(word1.lane[row1 + i]) << 18) + word0.lane[row0 + i];
            packed += pair * inputs.lane[i];
        }
        ap_int<18> low;
        low.range(17, 0) = packed.range(17, 0);
        ap_int<30> high = packed.range(47, 18);
        sum0 += low;
        sum1 += ap_int<SUM_BITS>(high) + (low < 0 ? 1 : 0);  // what a negative lower part borrowed
    }
}

// sums[r] += inputs . row r of the weights that one step takes: an array of ROWS x LANES products.
template <class Block, int ROWS, int SUM_BITS>
inline void multiply_array(const typename types<Block>::chunk_t& inputs,
                           const typename types<Block>::weights_t weights[ROWS / sizes<Block>::ROWS_PER_BEAT],
                           ap_int<SUM_BITS> sums[ROWS]) {
#pragma HLS INLINE
    const int PER_BEAT = sizes<Block>::ROWS_PER_BEAT;
    for (int r = 0; r < ROWS; r += 2) {
#pragma HLS UNROLL
        ap_int<SUM_BITS> sum0, sum1;
        dot_pair<Block, SUM_BITS>(inputs, weights[r / PER_BEAT], r % PER_BEAT * Block::LANES,
            weights[(r + 1) / PER_BEAT],
                                  (r + 1) % PER_BEAT * Block::LANES, sum0, sum1);
        sums[r] += sum0;
        sums[r + 1] += sum1;
    }
}

inline parameter_t parameter_of(const ap_uint<48>& packed) {
#pragma HLS INLINE
    parameter_t parameter;
    parameter.bias.range(31, 0) = packed.range(31, 0);
    parameter.multiplier = packed.range(47, 32);
    return parameter;
}

}  // namespace moec
#endif
