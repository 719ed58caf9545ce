// Processes: tokens come in from memory, once, and go to the router and to the experts.
#ifndef MOEC_TOKENS_H
#define MOEC_TOKENS_H
#include "moec_arithmetic.h"

namespace moec {

// memory: int8[tokens][WIDTH], chunk after chunk.
template <class Block>
void read_tokens(const beat_t* memory, int tokens, hls::stream<typename types<Block>::chunk_t>& to_router,
                 hls::stream<typename types<Block>::chunk_t>& to_experts) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BYTES / Block::LANES;
    beat_t beat = 0;
axi_read_tokens:
    for (int i = 0; i < tokens * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1
        if (i % CHUNKS_PER_BEAT == 0) beat = memory[i / CHUNKS_PER_BEAT];
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
#pragma HLS PIPELINE II=1
        const typename types<Block>::chunk_t chunk = normalized.read();
        to_router.write(chunk);
        to_experts.write(chunk);
    }
}

}  // namespace moec
#endif
