// Processes of an attention block around its products: work tile by tile, and where the rows of a head go.
#ifndef MOEC_HEADS_H
#define MOEC_HEADS_H
#include "moec_types.h"

namespace moec {

// The jobs of one matrix, all of whose tiles take all tokens. A job is announced before the items of the one in front
// of it, as dispatch does. Each matrix has a scheduler of its own, so neither waits for the other.
template <class Block>
void schedule(int tokens, int tiles, hls::stream<job_t>& to_loader, hls::stream<job_t>& to_product,
        hls::stream<item_t>& items) {
    const int jobs = tokens > 0 ? tiles : 0;
    int announced = 0;
schedule_jobs:
    for (int q = 0; q <= jobs; q++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::TILES+1
        job_t job;
        job.end = q == jobs;
        job.expert = 0;
        job.count = job.end ? 0 : tokens;
        job.tile = q;
        job.first = q == 0;
        job.last = q == tiles - 1;
        to_loader.write(job);
        to_product.write(job);
    schedule_items:
        for (int i = 0; i < announced; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::MAX_TOKENS
#pragma HLS PIPELINE II=1 style=stp
            item_t item;
            item.token = i;
            item.gate = 65536;
            items.write(item);
        }
        announced = job.count;
    }
}

// The tiles of a head of keys are these, its values, and the queries of all heads that share them, in this order: both
// others are known when queries come. Where all heads are normalised together, values come behind all others.
template <class Block>
void split_heads(hls::stream<job_t>& jobs, hls::stream<item_t>& items,
    hls::stream<typename types<Block>::chunk_t>& projected,
                 hls::stream<typename types<Block>::chunk_t>& keys_and_queries,
                 hls::stream<typename types<Block>::chunk_t>& values) {
    const int KEYS_AND_QUERIES = Block::HEADS / Block::SHARING * (1 + Block::SHARING);
    int part = 0, tile = 0;
split_jobs:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::TILES+1
        const job_t job = jobs.read();
        if (job.end) break;
    split_items:
        for (int i = 0; i < int(job.count); i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        split_chunks:
            for (int c = 0; c < sizes<Block>::TILE_CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                if (c == 0) items.read();  // tokens come in order: nothing new
                const typename types<Block>::chunk_t chunk = projected.read();
                if (Block::JOINT_NORM ? tile >= KEYS_AND_QUERIES : part == 1) values.write(chunk);
                else keys_and_queries.write(chunk);
            }
        }
        part = part == Block::SHARING + 1 ? 0 : part + 1;
        tile++;
    }
}

// Results of the output product come in the order of tokens, each once: nothing is left to combine.
template <class Block>
void pass_results(hls::stream<job_t>& jobs, hls::stream<item_t>& items,
                  hls::stream<typename types<Block>::results_t>& results,
                  hls::stream<typename types<Block>::results_t>& outputs) {
pass_jobs:
    while (true) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=2
        const job_t job = jobs.read();
        if (job.end) break;
    pass_items:
        for (int i = 0; i < int(job.count); i++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
        pass_chunks:
            for (int c = 0; c < sizes<Block>::WIDTH_CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                if (c == 0) items.read();
                outputs.write(results.read());
            }
        }
    }
}

}  // namespace moec
#endif
