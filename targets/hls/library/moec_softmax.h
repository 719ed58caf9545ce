// What a softmax weighs things with: powers of two from a table.
#ifndef MOEC_SOFTMAX_H
#define MOEC_SOFTMAX_H
#include "moec_types.h"

namespace moec {

// 2^-x for x = exponent / 1024, from a table of the fraction: 2^17 stands for 1.
template <class Block> inline ap_uint<18> power_of_half(int lane, const ap_uint<15>& exponent) {
#pragma HLS INLINE
    return Block::power_table(lane, exponent.range(9, 0)) >> ap_uint<5>(exponent.range(14, 10));
}

// What a softmax weighs something with, by how far its logit is below the largest. multiplier: from logits to places in
// the table.
template <class Block>
inline ap_uint<18> softmax_term(int lane, const ap_uint<Block::LOGIT_BITS + 1>& below, int multiplier) {
#pragma HLS INLINE
    const ap_uint<Block::LOGIT_BITS + 17> exponent = (below * ap_uint<16>(multiplier)) >> Block::SCORE_SHIFT;
    return power_of_half<Block>(lane, exponent > 32767 ? ap_uint<15>(32767) : ap_uint<15>(exponent));
}

}  // namespace moec
#endif
