// Process: the logits of all experts, one token after the other.
#ifndef MOEC_ROUTER_H
#define MOEC_ROUTER_H
#include "moec_arithmetic.h"

namespace moec {

// beats: int16 weights[experts][WIDTH], from a new beat on int32 biases[experts]. ROUTER_LANES inputs are multiplied with
// the weights of all experts in each cycle. Logits beyond those of the layer's experts are nonsense. Without experts
// there is nothing to do.
template <class Block>
void router(int tokens, int experts, hls::stream<beat_t>& beats, hls::stream<typename types<Block>::chunk_t>& inputs,
            hls::stream<typename types<Block>::logits_t>& logits) {
    typedef typename types<Block>::logit_t logit_t;
    const int PER_BEAT = BEAT_BITS / 16, STEPS_PER_BEAT = PER_BEAT / Block::ROUTER_LANES;
    const int STEPS = Block::WIDTH / Block::ROUTER_LANES;
    ap_int<16> weights[Block::EXPERTS][Block::WIDTH];
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=weights type=cyclic factor=Block::ROUTER_LANES dim=2
#pragma HLS BIND_STORAGE variable=weights type=ram_s2p impl=bram
    ap_int<32> biases[Block::EXPERTS];
#pragma HLS ARRAY_PARTITION variable=biases type=complete
    beat_t beat = 0;
    ap_uint<16> step = 0;
    ap_uint<8> row = 0;
// As many at once as a token's step takes: they go to as many memories.
router_weights:
    for (int i = 0; i < experts * STEPS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::EXPERTS*STEPS
#pragma HLS PIPELINE II=1 style=stp
        if (i % STEPS_PER_BEAT == 0) beat = beats.read();
        const lanes_t<16, Block::ROUTER_LANES> some = unpack<16, Block::ROUTER_LANES>(beat);
        for (int r = 0; r < Block::ROUTER_LANES; r++) {
#pragma HLS UNROLL
            weights[row][step * Block::ROUTER_LANES + r] = some.lane[r];
        }
        beat >>= 16 * Block::ROUTER_LANES % BEAT_BITS;
        const bool end_of_row = step == STEPS - 1;
        step = end_of_row ? ap_uint<16>(0) : ap_uint<16>(step + 1);
        if (end_of_row) row++;
    }
router_biases:
    for (int e = 0; e < experts; e++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::EXPERTS
#pragma HLS PIPELINE II=1 style=stp
        if (e % (PER_BEAT / 2) == 0) beat = beats.read();
        biases[e] = unpack<32, 1>(beat).lane[0];
        beat >>= 32;
    }
    logit_t sums[Block::EXPERTS];
#pragma HLS ARRAY_PARTITION variable=sums type=complete
    typename types<Block>::chunk_t chunk;
#pragma HLS ARRAY_PARTITION variable=chunk.lane type=complete
    const int routed = experts > 0 ? tokens : 0;
router_tokens:
    for (int t = 0; t < routed; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    router_inputs:
        for (int d = 0; d < Block::WIDTH; d += Block::ROUTER_LANES) {
#pragma HLS PIPELINE II=1 style=stp
            if (d % Block::LANES == 0) chunk = inputs.read();
            for (int e = 0; e < Block::EXPERTS; e++) {
#pragma HLS UNROLL
                logit_t sum = d == 0 ? logit_t(biases[e]) : sums[e];
                for (int r = 0; r < Block::ROUTER_LANES; r++) {
#pragma HLS UNROLL
                    sum += chunk.lane[r] * weights[e][d + r];
                }
                sums[e] = sum;
            }
            for (int i = 0; i + Block::ROUTER_LANES < Block::LANES; i++) {
#pragma HLS UNROLL
                chunk.lane[i] = chunk.lane[i + Block::ROUTER_LANES];
            }
            if (d == Block::WIDTH - Block::ROUTER_LANES) {
                typename types<Block>::logits_t result;
                for (int e = 0; e < Block::EXPERTS; e++) {
#pragma HLS UNROLL
                    result.of[e] = sums[e];
                }
                logits.write(result);
            }
        }
    }
}

}  // namespace moec
#endif
