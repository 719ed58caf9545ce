// Processes: latents, of which keys, values and queries are products where they are none of tokens (DeepSeek).
//
// A product_up makes the latents of all tokens, tile by tile; they are kept until all are there, measured, normalised
// as rows of heads are (moec_turn.h), and taken by product_rows (moec_rows.h) in the place of tokens.
#ifndef MOEC_LATENTS_H
#define MOEC_LATENTS_H
#include "moec_memory.h"
#include "moec_normalize.h"
#include "moec_scores.h"
#include "moec_weights.h"

namespace moec {

// What a row of a head is a product of: the token itself, where queries or keys need it; then latents, those of queries
// and of keys, which are normalised, and those that are not. Each begins with a new chunk.
template <class Block> struct latent_sizes {
    static const int TOKEN_CHUNKS = Block::LATENTS_BEHIND_TOKENS ? sizes<Block>::WIDTH_CHUNKS : 0;
    static const int QUERY_CHUNKS = Block::QUERY_LATENT_CHUNKS, KEY_CHUNKS = Block::KEY_LATENT_CHUNKS;
    static const int NORM_CHUNKS = QUERY_CHUNKS + KEY_CHUNKS;
    static const int LATENT_CHUNKS = NORM_CHUNKS + Block::SHARED_LATENT_CHUNKS;
    static const int ROW_CHUNKS = TOKEN_CHUNKS + LATENT_CHUNKS;
    static const int LATENT_TILES = blocks_of(LATENT_CHUNKS, attention_sizes<Block>::CHUNKS);
    static const int NORM_BEATS = blocks_of(2 * NORM_CHUNKS * Block::LANES, BEAT_BYTES);  // multipliers, int16
    static const int CHUNKS_PER_BEAT = BEAT_BITS / (16 * Block::LANES);
    // What is taken of all that: by queries their latents, or tokens; by values the latents of keys; by keys what
    // values take and all behind it, and where tokens stand in front that nothing shared says it of, all.
    static const int QUERY_FIRST = QUERY_CHUNKS > 0 ? TOKEN_CHUNKS : 0;
    static const int QUERY_STEPS = QUERY_CHUNKS > 0 ? QUERY_CHUNKS : TOKEN_CHUNKS;
    static const int VALUE_FIRST = TOKEN_CHUNKS + QUERY_CHUNKS, VALUE_STEPS = KEY_CHUNKS;
    static const int KEY_FIRST = Block::KEYS_TAKE_TOKENS ? 0 : VALUE_FIRST, KEY_STEPS = ROW_CHUNKS - KEY_FIRST;
    static const int MOST_STEPS = KEY_STEPS > QUERY_STEPS ? KEY_STEPS : QUERY_STEPS;
};

// The block as both products take it: that of latents, whose tiles are as wide as a head, and that of rows, as wide as
// the widest part that a tile takes.
template <class Block> struct latents_of : Block {
    static const int TILES = latent_sizes<Block>::LATENT_TILES;
    static const int SUM_BITS_UP = Block::LATENT_SUM_BITS, TOTAL_BITS_UP = SUM_BITS_UP;
    static const int SHIFT_UP = Block::LATENT_SHIFT;
};
template <class Block> struct rows_of : Block {
    static const int WIDTH = latent_sizes<Block>::MOST_STEPS * Block::LANES;
};

template <class Block> struct row_sizes {
    // of a tile
    static const int MOST_BEATS = sizes<rows_of<Block> >::PARAMETER_BEATS_UP + sizes<rows_of<Block> >::WEIGHT_BEATS_UP;
};

// Keys, values or queries (0, 1, 2) are what a tile makes; split_heads says in which order they come.
template <class Block> inline int part_of(int tile) {
#pragma HLS INLINE
    const int KEYS_AND_QUERIES = attention_sizes<Block>::KEY_HEADS * (1 + Block::SHARING);
    if (Block::JOINT_NORM) return tile >= KEYS_AND_QUERIES ? 1 : tile % (1 + Block::SHARING) == 0 ? 0 : 2;
    const int place = tile % (2 + Block::SHARING);
    return place < 2 ? place : 2;
}
template <class Block> inline int first_step(int part) {
#pragma HLS INLINE
    typedef latent_sizes<Block> S;
    return part == 0 ? S::KEY_FIRST : part == 1 ? S::VALUE_FIRST : S::QUERY_FIRST;
}
template <class Block> inline int steps_of(int part) {
#pragma HLS INLINE
    typedef latent_sizes<Block> S;
    return part == 0 ? S::KEY_STEPS : part == 1 ? S::VALUE_STEPS : S::QUERY_STEPS;
}
// Parameters of its channels, and weights.
template <class Block> inline int row_tile_beats(int part) {
#pragma HLS INLINE
    typedef sizes<rows_of<Block> > S;
    return S::PARAMETER_BEATS_UP + S::BANKS_UP * S::TILE_CHUNKS * steps_of<Block>(part);
}

// A latent, as moec_normalize.h takes tokens.
template <class Block> struct latent_of {
    static const int WIDTH = latent_sizes<Block>::NORM_CHUNKS * Block::LANES, LANES = Block::LANES,
        NORM_LANES = Block::LANES;
    static const int NORM_WIDTH = Block::LATENT_NORM_WIDTH, NORM_SHIFT = Block::LATENT_NORM_SHIFT;
    static const norm_t NORM = RMS_NORM;
    static ap_uint<16> inverse_root_table(const ap_uint<11>& at) {
#pragma HLS INLINE
        return Block::inverse_root_table(at);
    }
};

// memory, from the beat `at` on: multipliers of normalised latents, tiles of latents, tiles of rows. One master brings
// all of it in order, for no latent waits for a row.
template <class Block>
void load_latents_and_up(const beat_t* memory, int at, hls::stream<job_t>& latent_jobs, hls::stream<job_t>& jobs,
                         hls::stream<beat_t>& norm_beats, hls::stream<beat_t>& latent_beats,
                         hls::stream<beat_t>& beats) {
    typedef latent_sizes<Block> S;
    const int LATENT_BEATS = tile_beats_up<latents_of<Block> >(0);
    read_beats<S::NORM_BEATS>(memory, at, S::NORM_BEATS, norm_beats);
    load_tiles<latents_of<Block>, LATENT_BEATS,
        0>(memory, at + S::NORM_BEATS, S::LATENT_TILES, latent_jobs, latent_beats);
    int place = at + S::NORM_BEATS + S::LATENT_TILES * LATENT_BEATS;
load_rows:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::TILES+1
        const job_t job = jobs.read();
        if (job.end) break;
        const int count = row_tile_beats<Block>(part_of<Block>(job.tile));
    axi_read_rows:
        for (int i = 0; i < count; i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=row_sizes<Block>::MOST_BEATS
#pragma HLS PIPELINE II=1 style=stp
            beats.write(memory[place + i]);
        }
        place += count;
    }
}

// Latents come tile by tile, the last of which may end behind them.
template <class Block>
inline void keep_latents(hls::stream<job_t>& jobs, hls::stream<item_t>& items,
    hls::stream<typename types<Block>::chunk_t>& latents,
                         typename types<Block>::chunk_t kept[Block::MAX_TOKENS * latent_sizes<Block>::ROW_CHUNKS]) {
#pragma HLS INLINE
    typedef latent_sizes<Block> S;
keep_jobs:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=S::LATENT_TILES+1
        const job_t job = jobs.read();
        if (job.end) break;
    keep_items:
        for (int t = 0; t < int(job.count); t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        keep_chunks:
            for (int c = 0; c < attention_sizes<Block>::CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                if (c == 0) items.read();  // tokens come in order: nothing new
                const int place = int(job.tile) * attention_sizes<Block>::CHUNKS + c;
                const typename types<Block>::chunk_t chunk = latents.read();
                if (place < S::LATENT_CHUNKS) kept[t * S::ROW_CHUNKS + S::TOKEN_CHUNKS + place] = chunk;
            }
        }
    }
}

// Token by token, what is normalised with its measure behind it.
template <class Block>
inline void send_latents(int tokens, long long query_epsilon, long long key_epsilon,
                         const typename types<Block>::chunk_t kept[Block::MAX_TOKENS * latent_sizes<Block>::ROW_CHUNKS],
                         hls::stream<typename types<Block>::chunk_t>& measured_latents,
                         hls::stream<typename norm_types<latent_of<Block> >::measured_t>& latent_measures) {
#pragma HLS INLINE
    typedef latent_sizes<Block> S;
    const int SQUARES_BITS = norm_sizes<latent_of<Block> >::SQUARES_BITS;
    ap_uint<SQUARES_BITS> squares = 0;
send_tokens:
    for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    send_chunks:
        for (int c = 0; c < S::ROW_CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
            const typename types<Block>::chunk_t chunk = kept[t * S::ROW_CHUNKS + c];
            ap_uint<SQUARES_BITS> of_chunk = 0;
            for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
                of_chunk += ap_uint<16>(chunk.lane[i] * chunk.lane[i]);
            }
            const int place = c - S::TOKEN_CHUNKS;
            squares = place == 0 || place == S::QUERY_CHUNKS ? of_chunk : ap_uint<SQUARES_BITS>(squares + of_chunk);
            measured_latents.write(chunk);
            const bool ends_query = S::QUERY_CHUNKS > 0 && place == S::QUERY_CHUNKS - 1;
            if (ends_query || place == S::NORM_CHUNKS - 1)
                latent_measures.write(measured_of<latent_of<Block> >(0, squares, ends_query ? query_epsilon
                    : key_epsilon));
        }
    }
}

template <class Block>
void measure_latents(int tokens, long long query_epsilon, long long key_epsilon, hls::stream<job_t>& jobs,
    hls::stream<item_t>& items,
                     hls::stream<typename types<Block>::chunk_t>& latents,
                     hls::stream<typename types<Block>::chunk_t>& measured_latents,
                     hls::stream<typename norm_types<latent_of<Block> >::measured_t>& latent_measures) {
    typename types<Block>::chunk_t kept[Block::MAX_TOKENS * latent_sizes<Block>::ROW_CHUNKS];
#pragma HLS AGGREGATE variable=kept compact=bit
#pragma HLS BIND_STORAGE variable=kept type=ram_s2p impl=bram
    keep_latents<Block>(jobs, items, latents, kept);
    send_latents<Block>(tokens, query_epsilon, key_epsilon, kept, measured_latents, latent_measures);
}

// The same behind the tokens themselves.
template <class Block>
void measure_latents_behind_tokens(int tokens, long long query_epsilon, long long key_epsilon,
                                   hls::stream<typename types<Block>::chunk_t>& tokens_to_rows,
                                   hls::stream<job_t>& jobs,
                                   hls::stream<item_t>& items, hls::stream<typename types<Block>::chunk_t>& latents,
                                   hls::stream<typename types<Block>::chunk_t>& measured_latents,
                                   hls::stream<typename norm_types<latent_of<Block> >::measured_t>& latent_measures) {
    typedef latent_sizes<Block> S;
    typename types<Block>::chunk_t kept[Block::MAX_TOKENS * S::ROW_CHUNKS];
#pragma HLS AGGREGATE variable=kept compact=bit
#pragma HLS BIND_STORAGE variable=kept type=ram_s2p impl=bram
keep_tokens:
    for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    keep_token_chunks:
        for (int c = 0; c < S::TOKEN_CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
            kept[t * S::ROW_CHUNKS + c] = tokens_to_rows.read();
        }
    }
    keep_latents<Block>(jobs, items, latents, kept);
    send_latents<Block>(tokens, query_epsilon, key_epsilon, kept, measured_latents, latent_measures);
}

// norm_beats: a multiplier (int16) per channel that is normalised. All others pass.
template <class Block>
void normalize_latents(int tokens, hls::stream<beat_t>& norm_beats,
    hls::stream<typename types<Block>::chunk_t>& measured_latents,
                       hls::stream<typename norm_types<latent_of<Block> >::measured_t>& latent_measures,
                       hls::stream<typename types<Block>::chunk_t>& rows) {
    typedef latent_sizes<Block> S;
    typename types<Block>::results_t multipliers[S::NORM_CHUNKS];
#pragma HLS AGGREGATE variable=multipliers compact=bit
#pragma HLS BIND_STORAGE variable=multipliers type=ram_s2p impl=lutram
    beat_t beat = 0;
latent_read_multipliers:
    for (int c = 0; c < S::NORM_CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
        if (c % S::CHUNKS_PER_BEAT == 0) beat = norm_beats.read();
        multipliers[c] = unpack<16, Block::LANES>(beat);
        beat >>= 16 * Block::LANES % BEAT_BITS;
    }
    typename norm_types<latent_of<Block> >::measured_t current;
    current.sum = 0;
    current.inverse_root = 0;
    current.scale = 0;
normalize_tokens_of_latents:
    for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    normalize_latent_chunks:
        for (int c = 0; c < S::ROW_CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
            const int place = c - S::TOKEN_CHUNKS;
            const bool passes = place < 0 || place >= S::NORM_CHUNKS;
            if (place == 0 || place == S::QUERY_CHUNKS) current = latent_measures.read();
            const typename types<Block>::results_t of_chunk = multipliers[passes ? 0 : place];
            typename types<Block>::chunk_t chunk = measured_latents.read();
            for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
                ap_uint<48> parameter = 0;
                parameter.range(47, 32) = of_chunk.lane[i].range(15, 0);
                const ap_int<8> normal = normalize<latent_of<Block>, 8>(chunk.lane[i], current, parameter);
                if (!passes) chunk.lane[i] = normal;
            }
            rows.write(chunk);
        }
    }
}

}  // namespace moec
#endif
