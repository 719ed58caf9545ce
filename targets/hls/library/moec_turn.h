// Processes: keys and queries are normalised, row by row, and turned by the positions of their tokens.
//
// As with tokens (moec_normalize.h) a row is measured by one process and normalised by the next one, and the inverse
// root has its time while rows wait in the channel between.
#ifndef MOEC_TURN_H
#define MOEC_TURN_H
#include "moec_memory.h"
#include "moec_normalize.h"
#include "moec_scores.h"

namespace moec {

// In front of the turns of position 0 lie the multipliers of the channels of keys, then of queries, or, where all heads
// are normalised together, those of each tile. All are int16, one per channel of a padded row; of a position the cosine
// of a pair of channels, then its sine. A row begins with a beat.
template <class Block> struct turn_sizes {
    static const int ROW_BEATS = blocks_of(2 * Block::HIDDEN_TILE, BEAT_BYTES);
    static const int CHUNKS_PER_BEAT = BEAT_BITS / (16 * Block::LANES);
    static const int TILES = attention_sizes<Block>::KEY_HEADS * (1 + Block::SHARING);  // of keys and queries
    static const int NORM_ROWS = Block::JOINT_NORM ? TILES : 2;
    static const int FINE_BITS = 6;    // of fraction that a row has in front of its turn
    static const int TURN_BITS = 14;   // of fraction of cosines and sines
};

// A row of a head, as moec_normalize.h takes tokens.
template <class Block> struct row_of {
    static const int WIDTH = Block::HIDDEN_TILE, LANES = Block::LANES, NORM_LANES = Block::LANES;
    static const int NORM_WIDTH = Block::HEAD_NORM_WIDTH, NORM_SHIFT = Block::HEAD_NORM_SHIFT;
    static const norm_t NORM = RMS_NORM;
    static ap_uint<16> inverse_root_table(const ap_uint<11>& at) {
#pragma HLS INLINE
        return Block::inverse_root_table(at);
    }
};

// The turns are read once for each tile that they are used in: a row of them is a beat or a few, and stays nowhere. at:
// of the multipliers.
template <class Block> inline void read_turns_at(const beat_t* memory, int at, int past, int tokens,
        hls::stream<beat_t>& beats) {
#pragma HLS INLINE
    typedef turn_sizes<Block> S;
    read_beats<S::NORM_ROWS * S::ROW_BEATS>(memory, at, S::NORM_ROWS * S::ROW_BEATS, beats);
read_tiles_of_turns:
    for (int tile = 0; tile < S::TILES; tile++) {
    axi_read_turns:
        for (int i = 0; i < tokens * S::ROW_BEATS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS*S::ROW_BEATS
#pragma HLS PIPELINE II=1 style=stp
            beats.write(memory[at + (S::NORM_ROWS + past) * S::ROW_BEATS + i]);
        }
    }
}

template <class Block> void read_turns(const beat_t* memory, int at, int past, int tokens, hls::stream<beat_t>& beats) {
    read_turns_at<Block>(memory, at, past, tokens, beats);
}

// Sinks lie in front of all that.
template <class Block>
void read_sinks_and_turns(const beat_t* memory, int at, int past, int tokens, hls::stream<beat_t>& sink_beats,
        hls::stream<beat_t>& beats) {
    const int SINK_BEATS = attention_sizes<Block>::SINK_BEATS;
    read_beats<SINK_BEATS>(memory, at, SINK_BEATS, sink_beats);
    read_turns_at<Block>(memory, at + SINK_BEATS, past, tokens, beats);
}

template <class Block>
inline ap_uint<norm_sizes<row_of<Block> >::SQUARES_BITS> squares_of(const typename types<Block>::chunk_t& chunk) {
#pragma HLS INLINE
    ap_uint<norm_sizes<row_of<Block> >::SQUARES_BITS> squares = 0;
    for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
        squares += ap_uint<16>(chunk.lane[i] * chunk.lane[i]);
    }
    return squares;
}

// Epsilons are added to what norm_sizes has as v. A design without normalisation of heads has measures that nobody
// uses.
template <class Block>
void measure_heads(int tokens, long long key_epsilon, long long query_epsilon,
    hls::stream<typename types<Block>::chunk_t>& rows,
                   hls::stream<typename types<Block>::chunk_t>& measured_rows,
                   hls::stream<typename norm_types<row_of<Block> >::measured_t>& measures) {
    typedef turn_sizes<Block> S;
    const int CHUNKS = attention_sizes<Block>::CHUNKS;
    const int SQUARES_BITS = norm_sizes<row_of<Block> >::SQUARES_BITS;
    ap_uint<SQUARES_BITS> squares = 0;
measure_tiles:
    for (int tile = 0; tile < S::TILES; tile++) {
        const long long epsilon = tile % (1 + Block::SHARING) == 0 ? key_epsilon : query_epsilon;
    measure_rows:
        for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        measure_chunks:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                const typename types<Block>::chunk_t chunk = rows.read();
                const ap_uint<SQUARES_BITS> chunk_squares = Block::HEAD_NORM ? squares_of<Block>(chunk)
                    : ap_uint<SQUARES_BITS>(0);
                squares = c == 0 ? chunk_squares : ap_uint<SQUARES_BITS>(squares + chunk_squares);
                measured_rows.write(chunk);
                if (c == CHUNKS - 1) measures.write(measured_of<row_of<Block> >(0, squares, epsilon));
            }
        }
    }
}

// As measure_heads, where the rows of all heads are normalised together: they are kept until their squares are summed
// up, which takes the time of the values that come behind them. Sums of rows are kept, too, so that no loop reads what
// it writes.
template <class Block>
void measure_all_heads(int tokens, long long key_epsilon, long long query_epsilon,
                       hls::stream<typename types<Block>::chunk_t>& rows,
                       hls::stream<typename types<Block>::chunk_t>& measured_rows,
                       hls::stream<typename norm_types<row_of<Block> >::measured_t>& measures) {
    typedef turn_sizes<Block> S;
    typedef norm_sizes<row_of<Block> > N;
    const int CHUNKS = attention_sizes<Block>::CHUNKS;
    typename types<Block>::chunk_t kept[S::TILES * Block::MAX_TOKENS * CHUNKS];
#pragma HLS AGGREGATE variable=kept compact=bit
#pragma HLS BIND_STORAGE variable=kept type=ram_s2p impl=bram
    ap_uint<N::SQUARES_BITS> of_rows[Block::MAX_TOKENS * S::TILES];
#pragma HLS BIND_STORAGE variable=of_rows type=ram_s2p impl=bram
    typename norm_types<row_of<Block> >::measured_t of_parts[2 * Block::MAX_TOKENS];  // of keys, and of queries
#pragma HLS AGGREGATE variable=of_parts compact=bit
#pragma HLS BIND_STORAGE variable=of_parts type=ram_s2p impl=lutram
    ap_uint<N::SQUARES_BITS> squares = 0;
    int place = 0;  // in a head of keys, whose queries come behind it
keep_tiles:
    for (int tile = 0; tile < S::TILES; tile++) {
    keep_rows:
        for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        keep_chunks:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                const typename types<Block>::chunk_t chunk = rows.read();
                const ap_uint<N::SQUARES_BITS> of_chunk = squares_of<Block>(chunk);
                squares = c == 0 ? of_chunk : ap_uint<N::SQUARES_BITS>(squares + of_chunk);
                kept[(tile * Block::MAX_TOKENS + t) * CHUNKS + c] = chunk;
                if (c == CHUNKS - 1) of_rows[t * S::TILES + tile] = squares;
            }
        }
    }
measure_parts:
    for (int part = 0; part < 2; part++) {
        const long long epsilon = part == 0 ? key_epsilon : query_epsilon;
    measure_tokens_of_part:
        for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        measure_rows_of_token:
            for (int tile = 0; tile < S::TILES; tile++) {
#pragma HLS PIPELINE II=1 style=stp
                const ap_uint<N::SQUARES_BITS> before = tile == 0 ? ap_uint<N::SQUARES_BITS>(0) : squares;
                const ap_uint<N::SQUARES_BITS> of_row = of_rows[t * S::TILES + tile];
                squares = (place == 0) == (part == 0) ? ap_uint<N::SQUARES_BITS>(before + of_row) : before;
                place = place == Block::SHARING ? 0 : place + 1;
                if (tile == S::TILES - 1) of_parts[part * Block::MAX_TOKENS + t] = measured_of<row_of<Block> >(0,
                    squares, epsilon);
            }
        }
    }
send_tiles:
    for (int tile = 0; tile < S::TILES; tile++) {
        const int part = tile % (1 + Block::SHARING) == 0 ? 0 : 1;
    send_rows:
        for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        send_chunks:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                measured_rows.write(kept[(tile * Block::MAX_TOKENS + t) * CHUNKS + c]);
                if (c == CHUNKS - 1) measures.write(of_parts[part * Block::MAX_TOKENS + t]);
            }
        }
    }
}

// A chunk with FINE_BITS of fraction.
template <class Block>
inline typename types<Block>::results_t normalize_head(const typename types<Block>::chunk_t& chunk,
                                                       const typename norm_types<row_of<Block> >::measured_t& measured,
                                                       const typename types<Block>::results_t& multipliers) {
#pragma HLS INLINE
    typename types<Block>::results_t fine;
    for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
        ap_uint<48> parameter = 0;
        parameter.range(47, 32) = multipliers.lane[i].range(15, 0);
        if (Block::HEAD_NORM) fine.lane[i] = normalize<row_of<Block>, 16>(chunk.lane[i], measured, parameter);
        else fine.lane[i] = ap_int<16>(chunk.lane[i]) << turn_sizes<Block>::FINE_BITS;
    }
    return fine;
}

// Channels 2i and 2i + 1 by one angle.
template <class Block>
inline typename types<Block>::chunk_t turn(const typename types<Block>::results_t& fine,
        const typename types<Block>::results_t& angles) {
#pragma HLS INLINE
    const int SHIFT = turn_sizes<Block>::FINE_BITS + turn_sizes<Block>::TURN_BITS;
    typename types<Block>::chunk_t turned;
    for (int i = 0; i < Block::LANES; i += 2) {
#pragma HLS UNROLL
        const ap_int<16> cosine = angles.lane[i], sine = angles.lane[i + 1];
        const ap_int<33> even = fine.lane[i] * cosine - fine.lane[i + 1] * sine;
        const ap_int<33> odd = fine.lane[i] * sine + fine.lane[i + 1] * cosine;
        turned.lane[i] = saturate<8>(shift_down<SHIFT>(even));
        turned.lane[i + 1] = saturate<8>(shift_down<SHIFT>(odd));
    }
    return turned;
}

template <class Block>
void turn_heads(int tokens, hls::stream<beat_t>& beats, hls::stream<typename types<Block>::chunk_t>& measured_rows,
                hls::stream<typename norm_types<row_of<Block> >::measured_t>& measures,
                hls::stream<typename types<Block>::chunk_t>& turned) {
    typedef turn_sizes<Block> S;
    const int CHUNKS = attention_sizes<Block>::CHUNKS;
    typedef typename types<Block>::results_t numbers_t;
    numbers_t multipliers[S::NORM_ROWS][CHUNKS];
#pragma HLS AGGREGATE variable=multipliers compact=bit
#pragma HLS BIND_STORAGE variable=multipliers type=ram_s2p impl=lutram
    beat_t beat = 0;
turn_read_parts:
    for (int row = 0; row < S::NORM_ROWS; row++) {
    turn_read_multipliers:
        for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
            if (c % S::CHUNKS_PER_BEAT == 0) beat = beats.read();
            multipliers[row][c] = unpack<16, Block::LANES>(beat);
            beat >>= 16 * Block::LANES % BEAT_BITS;
        }
    }
    typename norm_types<row_of<Block> >::measured_t current;
    current.sum = 0;
    current.inverse_root = 0;
    current.scale = 0;
turn_tiles:
    for (int tile = 0; tile < S::TILES; tile++) {
        const int row = Block::JOINT_NORM ? tile : tile % (1 + Block::SHARING) == 0 ? 0 : 1;
    turn_rows:
        for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        turn_chunks:
            for (int c = 0; c < CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                if (c == 0) current = measures.read();
                if (c % S::CHUNKS_PER_BEAT == 0) beat = beats.read();
                const numbers_t angles = unpack<16, Block::LANES>(beat);
                beat >>= 16 * Block::LANES % BEAT_BITS;
                turned.write(turn<Block>(normalize_head<Block>(measured_rows.read(), current, multipliers[row][c]),
                    angles));
            }
        }
    }
}

}  // namespace moec
#endif
