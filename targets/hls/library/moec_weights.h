// Processes: weights come in from memory, tile by tile. And how tiles lie in the memories that feed the arrays.
#ifndef MOEC_WEIGHTS_H
#define MOEC_WEIGHTS_H
#include "moec_arithmetic.h"

namespace moec {

// Weights are packed in the order in which they are used, so a job is one contiguous burst. Each matrix has a loader and
// an AXI master of its own: one loader that served both in order would deadlock. (The second product waits for hidden
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

// memory, from the beat `at` on: the table of the activation, if there is one; then, tile by tile, the parameters of its
// channels, the multipliers of its groups, and its weights. tiles: those of an expert.
template <class Block>
void load_up(const beat_t* memory, int at, int tiles, hls::stream<job_t>& jobs, hls::stream<beat_t>& beats) {
    const int table = Block::ACTIVATED ? ACTIVATION_BEATS : 0;
axi_read_activation:
    for (int i = 0; i < table; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=ACTIVATION_BEATS
#pragma HLS PIPELINE II=1 style=stp
        beats.write(memory[at + i]);
    }
    load_tiles<Block, sizes<Block>::TILE_BEATS_UP, 0>(memory, at + table, tiles, jobs, beats);
}

// memory, from the beat `at` on, expert by expert: the multipliers and weights of all tiles, then the parameters of the
// results.
template <class Block>
void load_down(const beat_t* memory, int at, int tiles, hls::stream<job_t>& jobs, hls::stream<beat_t>& beats) {
    load_tiles<Block, sizes<Block>::TILE_BEATS_DOWN, sizes<Block>::PARAMETER_BEATS_DOWN>(memory, at, tiles, jobs, beats);
}

// Beat i of parameters goes to memory i % BANKS, so that a step reads those of all rows at once.
template <int BANKS, int DEPTH>
inline void store_parameters(int beat, const beat_t& data, parameters_t parameters[BANKS][DEPTH]) {
#pragma HLS INLINE
    parameters_t word;
    for (int i = 0; i < PARAMETERS_PER_BEAT; i++) {
#pragma HLS UNROLL
        word.of[i] = data.range(PARAMETER_BITS * i + 47, PARAMETER_BITS * i);
    }
    parameters[beat % BANKS][beat / BANKS] = word;
}

// Those of the rows of one step.
template <int BANKS, int DEPTH>
inline void read_parameters(const parameters_t parameters[BANKS][DEPTH], int place, ap_uint<48> of_row[BANKS * PARAMETERS_PER_BEAT]) {
#pragma HLS INLINE
    for (int b = 0; b < BANKS; b++) {
#pragma HLS UNROLL
        const parameters_t word = parameters[b][place];
        for (int i = 0; i < PARAMETERS_PER_BEAT; i++) {
#pragma HLS UNROLL
            of_row[b * PARAMETERS_PER_BEAT + i] = word.of[i];
        }
    }
}

// Beat i of a tile's weights goes to memory i % BANKS, so only whole words are ever written.
template <class Block, int BANKS, int DEPTH>
inline void store_weights(int beat, const beat_t& data, typename types<Block>::weights_t weights[BANKS][DEPTH]) {
#pragma HLS INLINE
    weights[beat % BANKS][beat / BANKS] = unpack<Block::WEIGHT_BITS, BEAT_BITS / Block::WEIGHT_BITS>(data);
}

}  // namespace moec
#endif
