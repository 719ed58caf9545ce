// Process: the logits of all experts, one token after the other.
#ifndef MOEC_ROUTER_H
#define MOEC_ROUTER_H
#include "moec_arithmetic.h"

namespace moec {

// beats: int16 weights[experts][WIDTH], from a new beat on int32 biases[experts], then likewise biases on the choice,
// which go on in front of all logits. In each cycle ROUTER_LANES inputs are multiplied with the weights of
// ROUTER_EXPERTS experts, which take turns with each step of a token: sums go round in a ring of one word per turn.
// Logits beyond those of the layer's experts are nonsense. Without experts there is nothing to do.
template <class Block>
void router(int tokens, int experts, hls::stream<beat_t>& beats, hls::stream<typename types<Block>::chunk_t>& inputs,
            hls::stream<typename types<Block>::logits_t>& logits) {
    typedef typename types<Block>::logit_t logit_t;
    const int AT_ONCE = Block::ROUTER_EXPERTS, TURNS = sizes<Block>::ROUTER_TURNS;
    const int PER_BEAT = BEAT_BITS / 16, STEPS_PER_BEAT = PER_BEAT / Block::ROUTER_LANES;
    const int STEPS = Block::WIDTH / Block::ROUTER_LANES, STEPS_PER_CHUNK = Block::LANES / Block::ROUTER_LANES;
    ap_int<16> weights[AT_ONCE][TURNS * Block::WIDTH];  // by step, then by turn: as tokens take them
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=weights type=cyclic factor=Block::ROUTER_LANES dim=2
#pragma HLS BIND_STORAGE variable=weights type=ram_s2p impl=bram
    ap_int<32> biases[AT_ONCE][TURNS];
#pragma HLS ARRAY_PARTITION variable=biases type=complete dim=0
    beat_t beat = 0;
    ap_uint<16> step = 0;
    expert_t row = 0, turn = 0;  // of an expert: its place among those at once, and when it is
// As many at once as a token's step takes: they go to as many memories.
router_weights:
    for (int i = 0; i < experts * STEPS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::EXPERTS*STEPS
#pragma HLS PIPELINE II=1 style=stp
        if (i % STEPS_PER_BEAT == 0) beat = beats.read();
        const lanes_t<16, Block::ROUTER_LANES> some = unpack<16, Block::ROUTER_LANES>(beat);
        for (int r = 0; r < Block::ROUTER_LANES; r++) {
#pragma HLS UNROLL
            weights[row][(step * TURNS + turn) * Block::ROUTER_LANES + r] = some.lane[r];
        }
        beat >>= 16 * Block::ROUTER_LANES % BEAT_BITS;
        const bool end_of_row = step == STEPS - 1, end_of_turn = end_of_row && row == AT_ONCE - 1;
        step = end_of_row ? ap_uint<16>(0) : ap_uint<16>(step + 1);
        if (end_of_row) row = end_of_turn ? expert_t(0) : expert_t(row + 1);
        if (end_of_turn) turn++;
    }
    row = 0;
    turn = 0;
router_biases:
    for (int e = 0; e < experts; e++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::EXPERTS
#pragma HLS PIPELINE II=1 style=stp
        if (e % (PER_BEAT / 2) == 0) beat = beats.read();
        biases[row][turn] = unpack<32, 1>(beat).lane[0];
        beat >>= 32;
        const bool end_of_turn = row == AT_ONCE - 1;
        row = end_of_turn ? expert_t(0) : expert_t(row + 1);
        if (end_of_turn) turn++;
    }
    row = 0;
    typename types<Block>::logits_t word;
#pragma HLS ARRAY_PARTITION variable=word.of type=complete
    const int moved = Block::BIASED_CHOICE ? experts : 0;
router_choice:
    for (int e = 0; e < moved; e++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::EXPERTS
#pragma HLS PIPELINE II=1 style=stp
        if (e % (PER_BEAT / 2) == 0) beat = beats.read();
        word.of[row] = unpack<32, 1>(beat).lane[0];
        beat >>= 32;
        const bool end_of_turn = row == AT_ONCE - 1;
        row = end_of_turn ? expert_t(0) : expert_t(row + 1);
        if (end_of_turn || e == moved - 1) logits.write(word);
    }
    logit_t sums[TURNS][AT_ONCE];  // the word of this turn first
#pragma HLS ARRAY_PARTITION variable=sums type=complete dim=0
    typename types<Block>::chunk_t chunk;
#pragma HLS ARRAY_PARTITION variable=chunk.lane type=complete
    const int routed = experts > 0 ? tokens : 0;
    step = 0;
    turn = 0;
router_tokens:
    for (int t = 0; t < routed; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    router_inputs:
        for (int i = 0; i < STEPS * TURNS; i++) {
#pragma HLS PIPELINE II=1 style=stp
            const bool first_step = i < TURNS, last_step = i >= (STEPS - 1) * TURNS, last_turn = turn == TURNS - 1;
            if (step == 0 && turn == 0) chunk = inputs.read();
            typename types<Block>::logits_t result;
            for (int e = 0; e < AT_ONCE; e++) {
#pragma HLS UNROLL
                logit_t sum = first_step ? logit_t(biases[e][turn]) : sums[0][e];
                for (int r = 0; r < Block::ROUTER_LANES; r++) {
#pragma HLS UNROLL
                    sum += chunk.lane[r] * weights[e][i * Block::ROUTER_LANES + r];
                }
                for (int p = 0; p + 1 < TURNS; p++) {
#pragma HLS UNROLL
                    sums[p][e] = sums[p + 1][e];
                }
                sums[TURNS - 1][e] = sum;
                result.of[e] = sum;
            }
            for (int l = 0; l + Block::ROUTER_LANES < Block::LANES; l++) {
#pragma HLS UNROLL
                if (last_turn) chunk.lane[l] = chunk.lane[l + Block::ROUTER_LANES];
            }
            if (last_turn) step = step == STEPS_PER_CHUNK - 1 ? ap_uint<16>(0) : ap_uint<16>(step + 1);
            turn = last_turn ? expert_t(0) : expert_t(turn + 1);
            if (last_step) logits.write(result);
        }
    }
}

}  // namespace moec
#endif
