// Processes: beats come in from memory and go out to it, one after the other.
//
// Nothing else is in their loops: an access that depends on a condition, or an address that is computed, is no burst
// (UG1448, 214-232 and 214-229). What is in the beats is taken apart, and put together, by other processes.
#ifndef MOEC_MEMORY_H
#define MOEC_MEMORY_H
#include "moec_types.h"

namespace moec {

template <class Block> struct memory_sizes {
    static const int TOKEN_BEATS = blocks_of(Block::MAX_TOKENS * Block::WIDTH, BEAT_BYTES);       // int8
    static const int STREAM_BEATS = blocks_of(2 * Block::MAX_TOKENS * Block::WIDTH, BEAT_BYTES);  // int16
    static const int NORM_BEATS = blocks_of(Block::WIDTH, PARAMETERS_PER_BEAT);
    // of an expert: that of its logit, that of its choice
    static const int ROUTER_BIASES = Block::BIASED_CHOICE ? 2 : 1;
    static const int ROUTER_BEATS = blocks_of(2 * Block::EXPERTS * Block::WIDTH, BEAT_BYTES)
        + ROUTER_BIASES * blocks_of(4 * Block::EXPERTS, BEAT_BYTES);
};

// at: the beat at which the first one lies.
template <int MOST> inline void read_beats(const beat_t* memory, int at, int count, hls::stream<beat_t>& beats) {
#pragma HLS INLINE
axi_read_beats:
    for (int i = 0; i < count; i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=MOST
#pragma HLS PIPELINE II=1 style=stp
        beats.write(memory[at + i]);
    }
}

// memory: int8[tokens][WIDTH].
template <class Block> void read_tokens(const beat_t* memory, int at, int tokens, hls::stream<beat_t>& beats) {
    read_beats<memory_sizes<Block>::TOKEN_BEATS>(memory, at, blocks_of(tokens * Block::WIDTH, BEAT_BYTES), beats);
}

// norm_memory: a multiplier (int16) and a bias (int32) per channel, as parameter_t. memory: int16[tokens][WIDTH].
template <class Block>
void read_stream(const beat_t* norm_memory, int norm_at, const beat_t* memory, int at, int tokens,
                 hls::stream<beat_t>& norm_beats, hls::stream<beat_t>& beats) {
    typedef memory_sizes<Block> S;
    read_beats<S::NORM_BEATS>(norm_memory, norm_at, S::NORM_BEATS, norm_beats);
    read_beats<S::STREAM_BEATS>(memory, at, blocks_of(2 * tokens * Block::WIDTH, BEAT_BYTES), beats);
}

// memory: int16[tokens][WIDTH], the tokens once more. They are read again through a master of their own, which is a few
// block RAMs; to keep them on the chip until results come would take tokens * WIDTH * 16 bits. None are read where
// nothing is added.
template <class Block> void read_residual(const beat_t* memory, int at, int tokens, bool adds,
        hls::stream<beat_t>& beats) {
    read_beats<memory_sizes<Block>::STREAM_BEATS>(memory, at, adds ? blocks_of(2 * tokens * Block::WIDTH, BEAT_BYTES)
        : 0, beats);
}

// memory: int16 weights[experts][WIDTH], from a new beat on int32 biases[experts], and likewise biases on their choice.
template <class Block> void read_router(const beat_t* memory, int at, int experts, hls::stream<beat_t>& beats) {
    const int biases = memory_sizes<Block>::ROUTER_BIASES * blocks_of(4 * experts, BEAT_BYTES);
    const int count = blocks_of(2 * experts * Block::WIDTH, BEAT_BYTES) + biases;
    read_beats<memory_sizes<Block>::ROUTER_BEATS>(memory, at, count, beats);
}

// memory: int16[tokens][WIDTH].
template <class Block> void write_tokens(int tokens, hls::stream<beat_t>& beats, beat_t* memory, int at) {
    const int count = blocks_of(2 * tokens * Block::WIDTH, BEAT_BYTES);
axi_write_tokens:
    for (int i = 0; i < count; i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=memory_sizes<Block>::STREAM_BEATS
#pragma HLS PIPELINE II=1 style=stp
        memory[at + i] = beats.read();
    }
}

}  // namespace moec
#endif
