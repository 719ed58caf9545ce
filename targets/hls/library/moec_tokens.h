// Processes: beats of tokens become chunks, which go to the router and to the experts; and results become beats.
#ifndef MOEC_TOKENS_H
#define MOEC_TOKENS_H
#include "moec_arithmetic.h"

namespace moec {

// beats: int8[tokens][WIDTH], chunk after chunk.
template <class Block>
void split_tokens(int tokens, hls::stream<beat_t>& beats, hls::stream<typename types<Block>::chunk_t>& to_router,
                  hls::stream<typename types<Block>::chunk_t>& to_experts) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BYTES / Block::LANES;
    beat_t beat = 0;
split_chunks:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        if (i % CHUNKS_PER_BEAT == 0) beat = beats.read();
        typename types<Block>::chunk_t chunk = unpack<8, Block::LANES>(beat);
        beat >>= 8 * Block::LANES;
        to_router.write(chunk);
        to_experts.write(chunk);
    }
}

// The same for tokens that were normalised on the way.
template <class Block>
void fork_tokens(int tokens, hls::stream<typename types<Block>::chunk_t>& normalized,
                 hls::stream<typename types<Block>::chunk_t>& to_router,
                 hls::stream<typename types<Block>::chunk_t>& to_experts) {
    typedef sizes<Block> S;
fork_chunks:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        const typename types<Block>::chunk_t chunk = normalized.read();
        to_router.write(chunk);
        to_experts.write(chunk);
    }
}

// residual: int16[tokens][WIDTH], what the block was given; nothing where nothing is added.
template <class Block>
void add_residual(int tokens, bool adds, hls::stream<beat_t>& residual,
    hls::stream<typename types<Block>::results_t>& results,
                  hls::stream<typename types<Block>::results_t>& sums) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BITS / (16 * Block::LANES);
    beat_t beat = 0;
add_chunks:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        if (adds && i % CHUNKS_PER_BEAT == 0) beat = residual.read();
        const typename types<Block>::results_t given = unpack<16, Block::LANES>(beat);
        beat >>= 16 * Block::LANES % BEAT_BITS;
        const typename types<Block>::results_t result = results.read();
        typename types<Block>::results_t sum;
        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
            sum.lane[o] = saturate<16, 17>(given.lane[o] + result.lane[o]);
        }
        sums.write(sum);
    }
}

// beats: int16[tokens][WIDTH], chunk after chunk.
template <class Block>
void pack_tokens(int tokens, hls::stream<typename types<Block>::results_t>& results, hls::stream<beat_t>& beats) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BITS / (16 * Block::LANES);
    beat_t beat = 0;
pack_chunks:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        const typename types<Block>::results_t result = results.read();
        const int place = i % CHUNKS_PER_BEAT;
        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
            const int first = 16 * (place * Block::LANES + o);
            beat.range(first + 15, first) = result.lane[o].range(15, 0);
        }
        if (place == CHUNKS_PER_BEAT - 1 || i == tokens * S::WIDTH_CHUNKS - 1) beats.write(beat);
    }
}

}  // namespace moec
#endif
