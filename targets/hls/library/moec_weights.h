// Processes: weights come in from memory, tile by tile. And how tiles lie in the memories that feed the arrays.
#ifndef MOEC_WEIGHTS_H
#define MOEC_WEIGHTS_H
#include "moec_arithmetic.h"

namespace moec {

// How many of `beats`, striped over the first `stripes` masters, come through a master.
constexpr int stripe_beats(int master, int stripes, int beats) { return master < stripes ? beats / stripes : 0; }

// What comes through a master for a tile.
template <class Block> constexpr int tile_beats_up(int master) {
    return stripe_beats(master, sizes<Block>::PARAMETER_STRIPES_UP, sizes<Block>::PARAMETER_BEATS_UP) +
           stripe_beats(master, sizes<Block>::MULTIPLIER_STRIPES_UP, sizes<Block>::MULTIPLIER_BEATS_UP) +
           sizes<Block>::WEIGHT_BEATS_UP / Block::MASTERS_UP;
}
template <class Block> constexpr int tile_beats_down(int master) {
    return stripe_beats(master, sizes<Block>::MULTIPLIER_STRIPES_DOWN, sizes<Block>::MULTIPLIER_BEATS_DOWN) +
           sizes<Block>::WEIGHT_BEATS_DOWN / Block::MASTERS_DOWN;
}
// And for the results of an expert, behind its last tile.
template <class Block> constexpr int result_beats_down(int master) {
    return stripe_beats(master, sizes<Block>::PARAMETER_STRIPES_DOWN, sizes<Block>::PARAMETER_BEATS_DOWN);
}

// Weights are packed in the order in which they are used, so a job is one contiguous burst. Each matrix has loaders and
// AXI masters of its own: one loader that served both in order would deadlock. (The second product waits for hidden
// units, so the first product waits for its next weights, which wait behind weights that the second does not take.)
// at: the beat at which the first expert's tiles begin.
template <class Block, int TILE_BEATS, int EXPERT_BEATS>
inline void load_tiles(const beat_t* memory, int at, int tiles, hls::stream<job_t>& jobs, hls::stream<beat_t>& beats) {
#pragma HLS INLINE
load_jobs:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=sizes<Block>::ALL_EXPERTS*Block::TILES+1
        const job_t job = jobs.read();
        if (job.end) break;
        const int first = at + int(job.expert) * (tiles * TILE_BEATS + EXPERT_BEATS) + int(job.tile) * TILE_BEATS;
        const int count = TILE_BEATS + (job.last ? EXPERT_BEATS : 0);
    axi_read_weights:
        for (int i = 0; i < count; i++) {
#pragma HLS LOOP_TRIPCOUNT min=TILE_BEATS max=TILE_BEATS+EXPERT_BEATS
#pragma HLS PIPELINE II=1 style=stp
            beats.write(memory[first + i]);
        }
    }
}

// memory, from the beat `at` on: of the first master, the table of the activation, if there is one; then, tile by tile,
// the master's part of the parameters of its channels, the multipliers of its groups, and its weights. tiles: those of
// an expert. passes: there is no first product, so no activation either.
template <class Block, int MASTER>
void load_up(const beat_t* memory, int at, int tiles, bool passes, hls::stream<job_t>& jobs,
        hls::stream<beat_t>& beats) {
    const int table = Block::ACTIVATED && MASTER == 0 && !passes ? ACTIVATION_BEATS : 0;
axi_read_activation:
    for (int i = 0; i < table; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=ACTIVATION_BEATS
#pragma HLS PIPELINE II=1 style=stp
        beats.write(memory[at + i]);
    }
    const int TILE_BEATS = tile_beats_up<Block>(MASTER);
    load_tiles<Block, TILE_BEATS, 0>(memory, at + table, tiles, jobs, beats);
}

// memory, from the beat `at` on, expert by expert, the master's part of: the multipliers and weights of all tiles, then
// the parameters of the results.
template <class Block, int MASTER>
void load_down(const beat_t* memory, int at, int tiles, hls::stream<job_t>& jobs, hls::stream<beat_t>& beats) {
    const int TILE_BEATS = tile_beats_down<Block>(MASTER), RESULT_BEATS = result_beats_down<Block>(MASTER);
    load_tiles<Block, TILE_BEATS, RESULT_BEATS>(memory, at, tiles, jobs, beats);
}

// Of each kind of array, bank b is at [b % STRIPES][b / STRIPES]: a master writes to one of the former, so memories
// have one writer each. Beat i of a stripe goes to its memory i % BANKS.
template <int STRIPES, int BANKS, int DEPTH>
inline void store_parameters(int stripe, int beat, const beat_t& data, parameters_t parameters[STRIPES][BANKS][DEPTH]) {
#pragma HLS INLINE
    parameters_t word;
    for (int i = 0; i < PARAMETERS_PER_BEAT; i++) {
#pragma HLS UNROLL
        word.of[i] = data.range(PARAMETER_BITS * i + 47, PARAMETER_BITS * i);
    }
    parameters[stripe][beat % BANKS][beat / BANKS] = word;
}

// Those of the rows of one step.
template <int STRIPES, int BANKS, int DEPTH>
inline void read_parameters(const parameters_t parameters[STRIPES][BANKS][DEPTH], int place,
                            ap_uint<48> of_row[STRIPES * BANKS * PARAMETERS_PER_BEAT]) {
#pragma HLS INLINE
    for (int b = 0; b < STRIPES * BANKS; b++) {
#pragma HLS UNROLL
        const parameters_t word = parameters[b % STRIPES][b / STRIPES][place];
        for (int i = 0; i < PARAMETERS_PER_BEAT; i++) {
#pragma HLS UNROLL
            of_row[b * PARAMETERS_PER_BEAT + i] = word.of[i];
        }
    }
}

// Only whole words are ever written.
template <class Block, int STRIPES, int BANKS, int DEPTH>
inline void store_weights(int stripe, int beat, const beat_t& data,
        typename types<Block>::weights_t weights[STRIPES][BANKS][DEPTH]) {
#pragma HLS INLINE
    weights[stripe][beat % BANKS][beat / BANKS] = unpack<Block::WEIGHT_BITS, BEAT_BITS / Block::WEIGHT_BITS>(data);
}

}  // namespace moec
#endif
