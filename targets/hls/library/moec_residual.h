// Processes at the end of a block: tokens go out to memory, added to what they were where the block has a residual.
#ifndef MOEC_RESIDUAL_H
#define MOEC_RESIDUAL_H
#include "moec_arithmetic.h"

namespace moec {

// memory: int16[tokens][WIDTH], chunk after chunk.
template <class Block>
void write_tokens(int tokens, hls::stream<typename types<Block>::results_t>& results, beat_t* memory) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BITS / (16 * Block::LANES);
    beat_t beat = 0;
axi_write_tokens:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1
        const typename types<Block>::results_t result = results.read();
        const int place = i % CHUNKS_PER_BEAT;
        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
            const int first = 16 * (place * Block::LANES + o);
            beat.range(first + 15, first) = result.lane[o].range(15, 0);
        }
        if (place == CHUNKS_PER_BEAT - 1 || i == tokens * S::WIDTH_CHUNKS - 1) memory[i / CHUNKS_PER_BEAT] = beat;
    }
}

// residual: the tokens that the block was given. They are read again through a master of their own, which is a few
// block RAMs; to keep them on the chip until results come would take tokens * WIDTH * 16 bits.
template <class Block>
void add_residual(const beat_t* residual, int tokens, hls::stream<typename types<Block>::results_t>& results,
                  hls::stream<typename types<Block>::results_t>& sums) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BITS / (16 * Block::LANES);
    beat_t beat = 0;
axi_read_residual:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1
        if (i % CHUNKS_PER_BEAT == 0) beat = residual[i / CHUNKS_PER_BEAT];
        const typename types<Block>::results_t given = unpack<16, Block::LANES>(beat);
        if (CHUNKS_PER_BEAT > 1) beat >>= 16 * Block::LANES % BEAT_BITS;
        const typename types<Block>::results_t result = results.read();
        typename types<Block>::results_t sum;
        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
            sum.lane[o] = saturate<16, 17>(given.lane[o] + result.lane[o]);
        }
        sums.write(sum);
    }
}

}  // namespace moec
#endif
