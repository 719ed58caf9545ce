// Process: the first product and the activation, hidden tile by hidden tile.
#ifndef MOEC_PRODUCT_UP_H
#define MOEC_PRODUCT_UP_H
#include "moec_groups.h"

namespace moec {

// The hidden unit of one channel, or of two neighbours where gated: activation(gate) * (up + up_offset).
template <class Block>
inline ap_int<8> activate(int lane, const ap_int<Block::TOTAL_BITS_UP> totals[sizes<Block>::PROJECTIONS],
                          const ap_uint<48> parameters[sizes<Block>::PROJECTIONS],
                          const ap_int<16> activation[sizes<Block>::ACTIVATION_COPIES][ACTIVATION_ENTRIES],
                          int hidden_multiplier,
                          int up_offset, int up_limit) {
#pragma HLS INLINE
    const ap_int<8> first = result_of<Block, 8, Block::SHIFT_UP,
        Block::TOTAL_BITS_UP>(totals[0], parameter_of(parameters[0]).multiplier);
    if (!Block::ACTIVATED) return first;
    const ap_int<16> activated = activation[lane / 2][int(first) + 128];
    if (!Block::GATED) return ap_int<8>(activated);
    const int last = sizes<Block>::PROJECTIONS - 1;
    ap_int<8> up = result_of<Block, 8, Block::SHIFT_UP,
        Block::TOTAL_BITS_UP>(totals[last], parameter_of(parameters[last]).multiplier);
    if (up > up_limit) up = up_limit;
    if (up < -up_limit) up = -up_limit;
    const ap_int<27> product = activated * ap_int<11>(up + ap_int<10>(up_offset));
    return requantize<8, Block::HIDDEN_SHIFT, 27>(product, ap_uint<16>(hidden_multiplier));
}

// Beat i of what comes through a master for a tile: parameters, multipliers, then weights.
template <class Block>
inline void store_up(int master, int beat, const beat_t& data,
                     typename types<Block>::weights_t weights[Block::MASTERS_UP][sizes<Block>::STRIPE_UP][
                     sizes<Block>::TILE_CHUNKS * sizes<Block>::WIDTH_CHUNKS],
                     parameters_t parameters[sizes<Block>::PARAMETER_STRIPES_UP][sizes<Block>::PARAMETER_STRIPE_UP][
                     sizes<Block>::TILE_CHUNKS],
                     multipliers_t multipliers[sizes<Block>::MULTIPLIER_STRIPES_UP][sizes<Block>::MULTIPLIER_STRIPE_UP][
                     sizes<Block>::MULTIPLIER_WORDS_UP]) {
#pragma HLS INLINE
    typedef sizes<Block> S;
    const int scales = stripe_beats(master, S::PARAMETER_STRIPES_UP, S::PARAMETER_BEATS_UP);
    const int first = scales + stripe_beats(master, S::MULTIPLIER_STRIPES_UP, S::MULTIPLIER_BEATS_UP);
    if (beat < scales) store_parameters<S::PARAMETER_STRIPES_UP, S::PARAMETER_STRIPE_UP,
        S::TILE_CHUNKS>(master % S::PARAMETER_STRIPES_UP, beat, data, parameters);
    else if (beat < first) store_multipliers<S::MULTIPLIER_STRIPES_UP, S::MULTIPLIER_STRIPE_UP,
        S::MULTIPLIER_WORDS_UP>(master % S::MULTIPLIER_STRIPES_UP, beat - scales, data, multipliers);
    else store_weights<Block, Block::MASTERS_UP, S::STRIPE_UP,
        S::TILE_CHUNKS * S::WIDTH_CHUNKS>(master, beat - first, data, weights);
}

// Holds the tokens of the call, and two tiles of weights: one is computed with while the next one arrives. Jobs and
// items are passed on, each as soon as it is known. hidden: LANES units of the current item at a time. Of gated
// experts, up is limited to up_limit, and its product with the activated gate is scaled by hidden_multiplier.
//
// passes: there is no first product, the numbers of a token are the hidden units. Without tokens, inputs come as they
// are passed on, tile by tile.
template <class Block>
void product_up(int tokens, bool passes, int hidden_multiplier, int up_offset, int up_limit,
                hls::stream<typename types<Block>::chunk_t>& inputs, hls::stream<job_t>& jobs,
                hls::stream<item_t>& items, hls::stream<beat_t> beats[Block::MASTERS_UP], hls::stream<job_t>& jobs_on,
                hls::stream<item_t>& items_on, hls::stream<typename types<Block>::chunk_t>& hidden) {
    typedef sizes<Block> S;
    const int N = Block::MASTERS_UP;
    typedef typename types<Block>::chunk_t chunk_t;
    typedef typename types<Block>::weights_t weights_t;
    chunk_t rows[Block::MAX_TOKENS * S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=rows compact=bit
#pragma HLS BIND_STORAGE variable=rows type=ram_s2p impl=bram
    weights_t weights[2][N][S::STRIPE_UP][S::TILE_CHUNKS * S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=weights compact=bit
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=3
#pragma HLS BIND_STORAGE variable=weights type=ram_s2p impl=bram
    parameters_t parameters[2][S::PARAMETER_STRIPES_UP][S::PARAMETER_STRIPE_UP][S::TILE_CHUNKS];
#pragma HLS AGGREGATE variable=parameters compact=bit
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=3
#pragma HLS BIND_STORAGE variable=parameters type=ram_s2p impl=lutram
    multipliers_t multipliers[2][S::MULTIPLIER_STRIPES_UP][S::MULTIPLIER_STRIPE_UP][S::MULTIPLIER_WORDS_UP];
#pragma HLS AGGREGATE variable=multipliers compact=bit
#pragma HLS ARRAY_PARTITION variable=multipliers type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=multipliers type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=multipliers type=complete dim=3
#pragma HLS BIND_STORAGE variable=multipliers type=ram_s2p impl=lutram
    ap_int<Block::SUM_BITS_UP> sums[S::ROWS_UP];  // of a group
#pragma HLS ARRAY_PARTITION variable=sums type=complete
    ap_int<Block::TOTAL_BITS_UP> totals[S::ROWS_UP];
#pragma HLS ARRAY_PARTITION variable=totals type=complete
    ap_int<16> activation[S::ACTIVATION_COPIES][ACTIVATION_ENTRIES];
#pragma HLS ARRAY_PARTITION variable=activation type=complete dim=1
#pragma HLS BIND_STORAGE variable=activation type=ram_t2p impl=bram
    const int TILE_BEATS = tile_beats_up<Block>(0);  // none has more
    const int chunks = tokens * S::WIDTH_CHUNKS;
    const int AT_ONCE = 2;  // entries of the table: its memories have two ports
    const int steps = Block::ACTIVATED && !passes ? ACTIVATION_ENTRIES / AT_ONCE : 0;
    beat_t table = 0;
// Tokens come more slowly than one chunk per cycle: the table of the activation arrives meanwhile.
up_read_tokens:
    for (int i = 0; i < chunks || i < steps; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::WIDTH_CHUNKS max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        if (i < steps) {
            if (i % (BEAT_BITS / (16 * AT_ONCE)) == 0) table = beats[0].read();
            for (int c = 0; c < S::ACTIVATION_COPIES; c++) {
#pragma HLS UNROLL
                for (int e = 0; e < AT_ONCE; e++) {
#pragma HLS UNROLL
                    activation[c][AT_ONCE * i + e] = unpack<16, AT_ONCE>(table).lane[e];
                }
            }
            table >>= 16 * AT_ONCE;
        }
        if (i < chunks) rows[i] = inputs.read();
    }
    bool current = false;
    job_t job = jobs.read();
    jobs_on.write(job);
    if (!job.end && !passes) {
    up_first_tile:
        for (int i = 0; i < TILE_BEATS; i++) {
#pragma HLS PIPELINE II=1 style=stp
            for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
                if (i < tile_beats_up<Block>(m)) store_up<Block>(m, i, beats[m].read(), weights[0], parameters[0],
                    multipliers[0]);
            }
        }
    }
up_jobs:
    while (!job.end) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=S::ALL_EXPERTS*Block::TILES
        const job_t next = jobs.read();
        jobs_on.write(next);
        const int computed = passes ? 0 : int(job.count), passed = passes ? int(job.count) : 0;
        int arrived[N];  // of the next tile, through each master
#pragma HLS ARRAY_PARTITION variable=arrived type=complete
        for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
            arrived[m] = next.end || passes ? tile_beats_up<Block>(m) : 0;
        }
        item_t item;
        item.token = 0;
    up_passed_items:
        for (int i = 0; i < passed; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::MAX_TOKENS
        up_passed_units:
            for (int unit = 0; unit < S::TILE_CHUNKS; unit++) {
#pragma HLS PIPELINE II=1 style=stp
                if (unit == 0) {
                    item = items.read();
                    items_on.write(item);
                }
                const int d = int(job.tile) * S::TILE_CHUNKS + unit;  // the last tile may end behind the token
                chunk_t units;
                for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                    units.lane[o] = 0;
                }
                if (tokens == 0) units = inputs.read();
                else if (d < S::WIDTH_CHUNKS) units = rows[int(item.token) * S::WIDTH_CHUNKS + d];
                hidden.write(units);
            }
        }
    up_items:
        for (int i = 0; i < computed; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::MAX_TOKENS
        up_units:
            for (int unit = 0; unit < S::TILE_CHUNKS; unit++) {
            up_inputs:
                for (int d = 0; d < S::WIDTH_CHUNKS; d++) {
#pragma HLS PIPELINE II=1 style=stp
// The tile that arrives is in other memories than the one that is computed with.
#pragma HLS DEPENDENCE variable=weights type=inter dependent=false
// The same holds for their parameters and multipliers.
#pragma HLS DEPENDENCE variable=parameters type=inter dependent=false
#pragma HLS DEPENDENCE variable=multipliers type=inter dependent=false
                    for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
                        beat_t beat;
                        if (arrived[m] < tile_beats_up<Block>(m) && beats[m].read_nb(beat)) {
                            store_up<Block>(m, arrived[m], beat, weights[!current], parameters[!current],
                                multipliers[!current]);
                            arrived[m]++;
                        }
                    }
                    if (unit == 0 && d == 0) {
                        item = items.read();
                        items_on.write(item);
                    }
                    ap_uint<48> of_row[S::ROWS_UP];
#pragma HLS ARRAY_PARTITION variable=of_row type=complete
                    read_parameters<S::PARAMETER_STRIPES_UP, S::PARAMETER_STRIPE_UP,
                        S::TILE_CHUNKS>(parameters[current], unit, of_row);
                    ap_int<16> of_group[S::ROWS_UP];
#pragma HLS ARRAY_PARTITION variable=of_group type=complete
                    read_multipliers<S::ROWS_UP, S::MULTIPLIER_STRIPES_UP, S::MULTIPLIER_STRIPE_UP,
                        S::MULTIPLIER_WORDS_UP>(
                        multipliers[current], unit * S::GROUPS_UP + d / S::GROUP_CHUNKS, of_group);
                    weights_t step[S::BANKS_UP];
#pragma HLS ARRAY_PARTITION variable=step type=complete
                    for (int b = 0; b < S::BANKS_UP; b++) {
#pragma HLS UNROLL
                        step[b] = weights[current][b % N][b / N][unit * S::WIDTH_CHUNKS + d];
                    }
                    if (d == 0) {
                        for (int r = 0; r < S::ROWS_UP; r++) {
#pragma HLS UNROLL
                            totals[r] = parameter_of(of_row[r]).bias;
                        }
                    }
                    accumulate<Block, S::ROWS_UP, Block::SHIFT_UP, Block::SUM_BITS_UP, Block::TOTAL_BITS_UP>(
                        d, S::WIDTH_CHUNKS, rows[int(item.token) * S::WIDTH_CHUNKS + d], step, of_group, sums, totals);
                    if (d == S::WIDTH_CHUNKS - 1) {
                        chunk_t units;
                        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                            const int first = o * S::PROJECTIONS;
                            units.lane[o] = activate<Block>(o, &totals[first], &of_row[first], activation,
                                hidden_multiplier, up_offset, up_limit);
                        }
                        hidden.write(units);
                    }
                }
            }
        }
        int rest = 0;
        for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
            if (rest < tile_beats_up<Block>(m) - arrived[m]) rest = tile_beats_up<Block>(m) - arrived[m];
        }
    up_rest_of_tile:
        for (int i = 0; i < rest; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=TILE_BEATS
#pragma HLS PIPELINE II=1 style=stp
            for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
                if (arrived[m] < tile_beats_up<Block>(m)) {
                    store_up<Block>(m, arrived[m], beats[m].read(), weights[!current], parameters[!current],
                        multipliers[!current]);
                    arrived[m]++;
                }
            }
        }
        job = next;
        current = !current;
    }
}

}  // namespace moec
#endif
