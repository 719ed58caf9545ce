// Process: rows of heads, where these are products of latents.
#ifndef MOEC_ROWS_H
#define MOEC_ROWS_H
#include "moec_latents.h"
#include "moec_product_up.h"

namespace moec {

// Beat i of a tile: parameters, then weights.
template <class Block>
inline void store_row(int beat, const beat_t& data,
                      typename types<Block>::weights_t weights[1][sizes<rows_of<Block> >::STRIPE_UP][
                      sizes<rows_of<Block> >::TILE_CHUNKS * sizes<rows_of<Block> >::WIDTH_CHUNKS],
                      parameters_t parameters[1][sizes<rows_of<Block> >::PARAMETER_STRIPE_UP][
                      sizes<rows_of<Block> >::TILE_CHUNKS]) {
#pragma HLS INLINE
    typedef sizes<rows_of<Block> > S;
    if (beat < S::PARAMETER_BEATS_UP) store_parameters<1, S::PARAMETER_STRIPE_UP,
        S::TILE_CHUNKS>(0, beat, data, parameters);
    else store_weights<Block, 1, S::STRIPE_UP,
        S::TILE_CHUNKS * S::WIDTH_CHUNKS>(0, beat - S::PARAMETER_BEATS_UP, data, weights);
}

// As product_up, but for what a tile takes of a token: queries their part of what stands beside each other, keys and
// values theirs. Weights of all others are zeros, and neither read nor multiplied with. How many steps that are depends
// on the tile, so one loop counts along.
template <class Block>
void product_rows(int tokens, hls::stream<typename types<Block>::chunk_t>& inputs, hls::stream<job_t>& jobs,
                  hls::stream<item_t>& items, hls::stream<beat_t>& beats, hls::stream<job_t>& jobs_on,
                  hls::stream<item_t>& items_on,
                  hls::stream<typename types<Block>::chunk_t>& projected) {
    typedef rows_of<Block> Rows;
    typedef sizes<Rows> S;
    typedef latent_sizes<Block> L;
    typedef typename types<Block>::chunk_t chunk_t;
    typedef typename types<Block>::weights_t weights_t;
    chunk_t rows[Block::MAX_TOKENS * L::ROW_CHUNKS];
#pragma HLS AGGREGATE variable=rows compact=bit
#pragma HLS BIND_STORAGE variable=rows type=ram_s2p impl=bram
    weights_t weights[2][1][S::STRIPE_UP][S::TILE_CHUNKS * S::WIDTH_CHUNKS];
#pragma HLS AGGREGATE variable=weights compact=bit
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=weights type=complete dim=3
#pragma HLS BIND_STORAGE variable=weights type=ram_s2p impl=bram
    parameters_t parameters[2][1][S::PARAMETER_STRIPE_UP][S::TILE_CHUNKS];
#pragma HLS AGGREGATE variable=parameters compact=bit
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=parameters type=complete dim=3
#pragma HLS BIND_STORAGE variable=parameters type=ram_s2p impl=lutram
    ap_int<Block::TOTAL_BITS_UP> totals[S::ROWS_UP];
#pragma HLS ARRAY_PARTITION variable=totals type=complete
rows_read_tokens:
    for (int i = 0; i < tokens * L::ROW_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=L::ROW_CHUNKS max=Block::MAX_TOKENS*L::ROW_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        rows[i] = inputs.read();
    }
    bool current = false;
    job_t job = jobs.read();
    jobs_on.write(job);
    const int first_beats = job.end ? 0 : row_tile_beats<Block>(part_of<Block>(job.tile));
rows_first_tile:
    for (int i = 0; i < first_beats; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=row_sizes<Block>::MOST_BEATS
#pragma HLS PIPELINE II=1 style=stp
        store_row<Block>(i, beats.read(), weights[0], parameters[0]);
    }
rows_jobs:
    while (!job.end) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::TILES
        const job_t next = jobs.read();
        jobs_on.write(next);
        const int part = part_of<Block>(job.tile);
        const int first = first_step<Block>(part), steps = steps_of<Block>(part);
        const int per_item = S::TILE_CHUNKS * steps;
        const int expected = next.end ? 0 : row_tile_beats<Block>(part_of<Block>(next.tile));
        int arrived = 0;                          // of the next tile
        // in an item: the step, the chunk of the row that is made, the one that is taken
        int place = 0, unit = 0, d = 0;
        item_t item;
        item.token = 0;
    rows_steps:
        for (int i = 0; i < int(job.count) * per_item; i++) {
#pragma HLS LOOP_TRIPCOUNT min=S::TILE_CHUNKS max=Block::MAX_TOKENS*S::TILE_CHUNKS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
// The tile that arrives is in other memories than the one that is computed with; so are its parameters.
#pragma HLS DEPENDENCE variable=weights type=inter dependent=false
#pragma HLS DEPENDENCE variable=parameters type=inter dependent=false
            beat_t beat;
            if (arrived < expected && beats.read_nb(beat)) {
                store_row<Block>(arrived, beat, weights[!current], parameters[!current]);
                arrived++;
            }
            if (place == 0) {
                item = items.read();
                items_on.write(item);
            }
            ap_uint<48> of_row[S::ROWS_UP];
#pragma HLS ARRAY_PARTITION variable=of_row type=complete
            read_parameters<1, S::PARAMETER_STRIPE_UP, S::TILE_CHUNKS>(parameters[current], unit, of_row);
            weights_t step[S::BANKS_UP];
#pragma HLS ARRAY_PARTITION variable=step type=complete
            for (int b = 0; b < S::BANKS_UP; b++) {
#pragma HLS UNROLL
                step[b] = weights[current][0][b][place];
            }
            if (d == 0) {
                for (int r = 0; r < S::ROWS_UP; r++) {
#pragma HLS UNROLL
                    totals[r] = parameter_of(of_row[r]).bias;
                }
            }
            multiply_array<Rows, S::ROWS_UP, Block::TOTAL_BITS_UP>(rows[int(item.token) * L::ROW_CHUNKS + first + d],
                step, totals);
            const bool ends_unit = d == steps - 1, ends_item = place == per_item - 1;
            if (ends_unit) {
                chunk_t units;
                for (int o = 0; o < Block::LANES; o++) {
#pragma HLS UNROLL
                    units.lane[o] = result_of<Rows, 8, Block::SHIFT_UP,
                        Block::TOTAL_BITS_UP>(totals[o], parameter_of(of_row[o]).multiplier);
                }
                projected.write(units);
            }
            d = ends_unit ? 0 : d + 1;
            unit = ends_item ? 0 : ends_unit ? unit + 1 : unit;
            place = ends_item ? 0 : place + 1;
        }
        const int rest = expected - arrived;
    rows_rest_of_tile:
        for (int i = 0; i < rest; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=row_sizes<Block>::MOST_BEATS
#pragma HLS PIPELINE II=1 style=stp
            store_row<Block>(arrived + i, beats.read(), weights[!current], parameters[!current]);
        }
        job = next;
        current = !current;
    }
}

}  // namespace moec
#endif
