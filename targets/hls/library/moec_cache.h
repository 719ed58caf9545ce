// Processes: keys and values of earlier tokens come from memory, and those of the call go there behind them.
//
// A cache is int8[heads][MAX_KEYS][HIDDEN_TILE], a row padded to whole beats, from the beat `at` on. What a call reads
// lies in front of what it writes, so nothing has to wait for what it has written itself.
#ifndef MOEC_CACHE_H
#define MOEC_CACHE_H
#include "moec_arithmetic.h"
#include "moec_scores.h"

namespace moec {

template <class Block> struct cache_sizes {
    static const int ROW_BEATS = blocks_of(Block::HIDDEN_TILE, BEAT_BYTES);
    static const int CHUNKS_PER_BEAT = BEAT_BYTES / Block::LANES;
};

// Those of `past` tokens, but for what lies in front of all windows, head by head.
template <class Block>
void read_cache(const beat_t* memory, int at, int past, int window, int tokens, hls::stream<beat_t>& beats) {
    typedef cache_sizes<Block> S;
    const int seen = seen_of<Block>(past, window);
    const int count = tokens > 0 ? seen * S::ROW_BEATS : 0, first = at + (past - seen) * S::ROW_BEATS;
read_cached_heads:
    for (int h = 0; h < attention_sizes<Block>::KEY_HEADS; h++) {
    axi_read_cache:
        for (int i = 0; i < count; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::MAX_KEYS*S::ROW_BEATS
#pragma HLS PIPELINE II=1 style=stp
            beats.write(memory[first + h * Block::MAX_KEYS * S::ROW_BEATS + i]);
        }
    }
}

// Behind those of `past` tokens.
template <class Block> void write_cache(int past, int tokens, hls::stream<beat_t>& beats, beat_t* memory, int at) {
    typedef cache_sizes<Block> S;
write_cached_heads:
    for (int h = 0; h < attention_sizes<Block>::KEY_HEADS; h++) {
    axi_write_cache:
        for (int i = 0; i < tokens * S::ROW_BEATS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS*S::ROW_BEATS
#pragma HLS PIPELINE II=1 style=stp
            memory[at + (h * Block::MAX_KEYS + past) * S::ROW_BEATS + i] = beats.read();
        }
    }
}

// Of each head the rows that the cache holds, then those of the call, which the cache gets, too; then the rows of
// QUERIES heads, which come behind the keys that they share, as they are.
template <class Block, int QUERIES>
void join_cache(int past, int window, int tokens, hls::stream<beat_t>& held,
    hls::stream<typename types<Block>::chunk_t>& rows,
                hls::stream<typename types<Block>::chunk_t>& joined, hls::stream<beat_t>& added) {
    typedef cache_sizes<Block> S;
    typedef typename types<Block>::chunk_t chunk_t;
    const int CHUNKS = attention_sizes<Block>::CHUNKS;
    const int before = tokens > 0 ? seen_of<Block>(past, window) : 0;
    beat_t beat = 0;
join_heads:
    for (int h = 0; h < attention_sizes<Block>::KEY_HEADS; h++) {
    join_held_rows:
        for (int t = 0; t < before; t++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::MAX_KEYS
        join_held_chunks:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                if (c % S::CHUNKS_PER_BEAT == 0) beat = held.read();
                joined.write(unpack<8, Block::LANES>(beat));
                beat >>= 8 * Block::LANES;
            }
        }
    join_rows:
        for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        join_chunks:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                const chunk_t chunk = rows.read();
                joined.write(chunk);
                const int place = c % S::CHUNKS_PER_BEAT;
                for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                    const int first = 8 * (place * Block::LANES + o);
                    beat.range(first + 7, first) = chunk.lane[o].range(7, 0);
                }
                if (place == S::CHUNKS_PER_BEAT - 1 || c == CHUNKS - 1) added.write(beat);
            }
        }
    join_queries:
        for (int t = 0; t < QUERIES * tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=QUERIES*Block::MAX_TOKENS
        join_query:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                joined.write(rows.read());
            }
        }
    }
}

}  // namespace moec
#endif
