// Process: the second product. Hidden units are used as they come; sums of an expert's tiles stay on the chip.
#ifndef MOEC_PRODUCT_DOWN_H
#define MOEC_PRODUCT_DOWN_H
#include "moec_groups.h"

namespace moec {

// Beat i of what comes through a master for a tile: multipliers, weights, then, with an expert's last tile, the
// parameters of its results.
template <class Block>
inline void store_down(int master, int beat, const beat_t& data,
                     typename types<Block>::weights_t weights[Block::MASTERS_DOWN][sizes<Block>::STRIPE_DOWN][
                     sizes<Block>::TILE_CHUNKS * sizes<Block>::WIDTH_CHUNKS],
                     parameters_t parameters[sizes<Block>::PARAMETER_STRIPES_DOWN][sizes<Block>::PARAMETER_STRIPE_DOWN][
                     sizes<Block>::WIDTH_CHUNKS],
                     multipliers_t multipliers[sizes<Block>::MULTIPLIER_STRIPES_DOWN][
                     sizes<Block>::MULTIPLIER_STRIPE_DOWN][sizes<Block>::MULTIPLIER_WORDS_DOWN]) {
#pragma HLS INLINE
    typedef sizes<Block> S;
    const int first = stripe_beats(master, S::MULTIPLIER_STRIPES_DOWN, S::MULTIPLIER_BEATS_DOWN);
    if (beat < first) store_multipliers<S::MULTIPLIER_STRIPES_DOWN, S::MULTIPLIER_STRIPE_DOWN,
        S::MULTIPLIER_WORDS_DOWN>(master % S::MULTIPLIER_STRIPES_DOWN, beat, data, multipliers);
    else if (beat < tile_beats_down<Block>(master)) store_weights<Block, Block::MASTERS_DOWN, S::STRIPE_DOWN,
        S::TILE_CHUNKS * S::WIDTH_CHUNKS>(master, beat - first, data, weights);
    else store_parameters<S::PARAMETER_STRIPES_DOWN, S::PARAMETER_STRIPE_DOWN,
        S::WIDTH_CHUNKS>(master % S::PARAMETER_STRIPES_DOWN, beat - tile_beats_down<Block>(master), data, parameters);
}

// What comes through a master for a job; nothing for the end.
template <class Block> inline int beats_down(int master, const job_t& job) {
#pragma HLS INLINE
    if (job.end) return 0;
    return tile_beats_down<Block>(master) + (job.last ? result_beats_down<Block>(master) : 0);
}

// results: LANES outputs of an item at a time, after the last tile of its expert; the job is passed on then.
template <class Block>
void product_down(hls::stream<job_t>& jobs, hls::stream<item_t>& items,
    hls::stream<typename types<Block>::chunk_t>& hidden,
                  hls::stream<beat_t> beats[Block::MASTERS_DOWN], hls::stream<job_t>& jobs_on,
                  hls::stream<item_t>& items_on,
                  hls::stream<typename types<Block>::results_t>& results) {
    typedef sizes<Block> S;
    const int N = Block::MASTERS_DOWN;
    const int TILE_BEATS = tile_beats_down<Block>(0), RESULT_BEATS = result_beats_down<Block>(0);
    static_assert(TILE_BEATS >= tile_beats_down<Block>(N - 1) && RESULT_BEATS >= result_beats_down<Block>(N - 1),
                  "no master brings more than the first");
    typedef typename types<Block>::weights_t weights_t;
    typedef lanes_t<Block::TOTAL_BITS_DOWN, Block::LANES> partial_t;
    partial_t partial[Block::MAX_TOKENS * S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=partial compact=bit
#pragma HLS BIND_STORAGE variable=partial type=ram_s2p impl=bram
    weights_t weights[2][N][S::STRIPE_DOWN][S::TILE_CHUNKS * S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=weights compact=bit
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=3
#pragma HLS BIND_STORAGE variable=weights type=ram_s2p impl=bram
    parameters_t parameters[2][S::PARAMETER_STRIPES_DOWN][S::PARAMETER_STRIPE_DOWN][S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=parameters compact=bit
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=3
#pragma HLS BIND_STORAGE variable=parameters type=ram_s2p impl=lutram
    multipliers_t multipliers[2][S::MULTIPLIER_STRIPES_DOWN][S::MULTIPLIER_STRIPE_DOWN][S::MULTIPLIER_WORDS_DOWN];
#pragma HLS AGGREGATE variable=multipliers compact=bit
#pragma HLS ARRAY_PARTITION variable=multipliers type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=multipliers type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=multipliers type=complete dim=3
#pragma HLS BIND_STORAGE variable=multipliers type=ram_s2p impl=lutram
    typename types<Block>::chunk_t units[S::TILE_CHUNKS];
#pragma HLS AGGREGATE variable=units compact=bit
#pragma HLS ARRAY_PARTITION variable=units type=complete
    ap_int<Block::SUM_BITS_DOWN> sums[Block::LANES];  // of a group
#pragma HLS ARRAY_PARTITION variable=sums type=complete
    ap_int<Block::TOTAL_BITS_DOWN> totals[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=totals type=complete
    bool current = false;
    job_t job = jobs.read();
    const int first_beats = beats_down<Block>(0, job);
down_first_tile:
    for (int i = 0; i < first_beats; i++) {
#pragma HLS LOOP_TRIPCOUNT min=TILE_BEATS max=TILE_BEATS+RESULT_BEATS
#pragma HLS PIPELINE II=1 style=stp
        for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
            if (i < beats_down<Block>(m, job)) store_down<Block>(m, i, beats[m].read(), weights[0], parameters[0],
                multipliers[0]);
        }
    }
    if (job.end) jobs_on.write(job);
down_jobs:
    while (!job.end) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=S::ALL_EXPERTS*Block::TILES
        if (job.last) jobs_on.write(job);
        const job_t next = jobs.read();
        int arrived[N];  // of the next tile, through each master
#pragma HLS ARRAY_PARTITION variable=arrived type=complete
        for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
            arrived[m] = 0;
        }
    down_items:
        for (int i = 0; i < int(job.count); i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        down_outputs:
            for (int d = 0; d < S::WIDTH_CHUNKS; d++) {
            down_units:
                for (int unit = 0; unit < S::TILE_CHUNKS; unit++) {
#pragma HLS PIPELINE II=1 style=stp
// A job visits every partial sum once, so none is read after it was written in this nest.
#pragma HLS DEPENDENCE variable=partial type=inter dependent=false
// The tile that arrives is in other memories than the one that is computed with.
#pragma HLS DEPENDENCE variable=weights type=inter dependent=false
// The same holds for their parameters and multipliers.
#pragma HLS DEPENDENCE variable=parameters type=inter dependent=false
#pragma HLS DEPENDENCE variable=multipliers type=inter dependent=false
                    for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
                        beat_t beat;
                        if (arrived[m] < beats_down<Block>(m, next) && beats[m].read_nb(beat)) {
                            store_down<Block>(m, arrived[m], beat, weights[!current], parameters[!current],
                                multipliers[!current]);
                            arrived[m]++;
                        }
                    }
                    if (d == 0) units[unit] = hidden.read();
                    if (d == 0 && unit == 0) {
                        const item_t item = items.read();
                        if (job.last) items_on.write(item);
                    }
                    ap_int<16> of_group[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=of_group type=complete
                    read_multipliers<Block::LANES, S::MULTIPLIER_STRIPES_DOWN, S::MULTIPLIER_STRIPE_DOWN,
                        S::MULTIPLIER_WORDS_DOWN>(
                        multipliers[current], d * S::GROUPS_DOWN + unit / S::GROUP_CHUNKS, of_group);
                    weights_t step[S::BANKS_DOWN];
#pragma HLS ARRAY_PARTITION variable=step type=complete
                    for (int b = 0; b < S::BANKS_DOWN; b++) {
#pragma HLS UNROLL
                        step[b] = weights[current][b % N][b / N][d * S::TILE_CHUNKS + unit];
                    }
                    if (unit == 0) {
                        const partial_t before = partial[i * S::WIDTH_CHUNKS + d];
                        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                            totals[o] = job.first ? ap_int<Block::TOTAL_BITS_DOWN>(0) : before.lane[o];
                        }
                    }
                    accumulate<Block, Block::LANES, Block::SHIFT_DOWN, Block::SUM_BITS_DOWN, Block::TOTAL_BITS_DOWN>(
                        unit, S::TILE_CHUNKS, units[unit], step, of_group, sums, totals);
                    if (unit == S::TILE_CHUNKS - 1) {
                        ap_uint<48> of_row[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=of_row type=complete
                        read_parameters<S::PARAMETER_STRIPES_DOWN, S::PARAMETER_STRIPE_DOWN,
                            S::WIDTH_CHUNKS>(parameters[current], d, of_row);
                        partial_t after;
                        typename types<Block>::results_t result;
                        for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                            const parameter_t parameter = parameter_of(of_row[o]);
                            const ap_int<Block::TOTAL_BITS_DOWN> biased = totals[o] + parameter.bias;
                            after.lane[o] = totals[o];
                            result.lane[o] = result_of<Block, 16, Block::SHIFT_DOWN,
                                Block::TOTAL_BITS_DOWN>(biased, parameter.multiplier);
                        }
                        if (job.last) results.write(result);
                        else partial[i * S::WIDTH_CHUNKS + d] = after;
                    }
                }
            }
        }
        int rest = 0;
        for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
            if (rest < beats_down<Block>(m, next) - arrived[m]) rest = beats_down<Block>(m, next) - arrived[m];
        }
    down_rest_of_tile:
        for (int i = 0; i < rest; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=TILE_BEATS+RESULT_BEATS
#pragma HLS PIPELINE II=1 style=stp
            for (int m = 0; m < N; m++) {
#pragma HLS UNROLL
                if (arrived[m] < beats_down<Block>(m, next)) {
                    store_down<Block>(m, arrived[m], beats[m].read(), weights[!current], parameters[!current],
                        multipliers[!current]);
                    arrived[m]++;
                }
            }
        }
        if (next.end) jobs_on.write(next);
        job = next;
        current = !current;
    }
}

}  // namespace moec
#endif
