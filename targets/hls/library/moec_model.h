// The processes of a model, one concept per header, and here the record of a layer and the processes that bring its
// inputs. Layers run one after the other on the same hardware; a block is a model of one layer.
//
// A layer of experts:
//
//   read_inputs -> measure_tokens -> normalize_tokens -> feed_tokens -> router -> select -> dispatch -> load_up,
// load_down
//                                                                 \____________________\-> product_up -> product_down
//      -> combine -> add_residual -> pack_tokens -> write_tokens
//
// In a block that does not normalise its tokens, read_tokens and split_tokens replace the first four processes, and
// there is no add_residual.
//
// A layer of attention:
//
//   read_stream -> measure_tokens -> normalize_tokens -> product_up -> split_heads -> score_keys -> weigh_keys
//      -> mix_values -> scale_values -> product_down -> pass_results -> add_residual -> pack_tokens -> write_tokens
//
// Keys, values and queries are the hidden tiles of a first product, head by head, and the weighted values those of a
// second one; both products and their loaders are those of a layer with one expert. The keys and values of one head are
// on the chip at a time. If rows of heads are products of latents, product_up makes these, and measure_latents,
// normalize_latents and product_rows follow it. If positions turn keys and queries, measure_heads and turn_heads
// precede score_keys; if a cache holds those of earlier tokens, join_cache precedes score_keys and mix_values.
//
// Each process is a template over the constants of a kernel (model_config.h of a generated project) and is called once
// in a DATAFLOW region. Every channel has one producer and one consumer, every array belongs to one process.
//
// A layer of experts may have none that tokens choose (a dense feed-forward network is a shared expert), and may be the
// second product alone (passes): a linear layer, whose inputs take the place of hidden units, tile by tile.
#ifndef MOEC_MODEL_H
#define MOEC_MODEL_H
#include "moec_cache.h"
#include "moec_combine.h"
#include "moec_dispatch.h"
#include "moec_heads.h"
#include "moec_latents.h"
#include "moec_memory.h"
#include "moec_normalize.h"
#include "moec_product_down.h"
#include "moec_product_up.h"
#include "moec_router.h"
#include "moec_rows.h"
#include "moec_scores.h"
#include "moec_select.h"
#include "moec_tokens.h"
#include "moec_turn.h"
#include "moec_values.h"
#include "moec_weights.h"

namespace moec {

enum layer_kind_t { EXPERTS_LAYER, ATTENTION_LAYER };

// The record of a layer: the numbers that layers do not share. Places in memory are in beats.
struct layer_t {
    int kind;
    int tokens;      // of the input
    int streamed;    // of these from the residual stream, which are normalised: all, or none where inputs are patches
    int patches;     // chunks of int8 that are not normalised, by tile, and then by token
    int rows;        // of the output: as many as tokens, or 1 where tokens are summed
    bool adds, passes, pools;
    int experts, slots, shared, tiles;
    int window;      // of attention, in the place of tiles: keys that a token attends to, the last of them its own
    int norm_at, input_at, residual_at, router_at, up_at, down_at, output_at;
    // of attention, in the places of hidden_multiplier and up_offset
    long long query_latent_epsilon, key_latent_epsilon;
    int score_multiplier, mixed_one, hidden_multiplier, up_offset, up_limit, shared_gate;
    long long epsilon;
    int past, turns_at, cache_at;                   // of attention: tokens of the sequence before the input
    long long key_norm_epsilon, query_norm_epsilon;
};
const int LAYER_BEATS = 2;  // 32 words of 32 bits each

inline int word_of(const beat_t beats[LAYER_BEATS], int place) {
#pragma HLS INLINE
    const int first = 32 * (place % 16);
    return ap_int<32>(beats[place / 16].range(first + 31, first));
}

inline void read_layer(const beat_t* layers, int at, layer_t& layer) {
    beat_t beats[LAYER_BEATS];
#pragma HLS ARRAY_PARTITION variable=beats type=complete
axi_read_layer:
    for (int i = 0; i < LAYER_BEATS; i++) {
#pragma HLS PIPELINE II=1 style=stp
        beats[i] = layers[at * LAYER_BEATS + i];
    }
    layer.kind = word_of(beats, 0);
    layer.tokens = word_of(beats, 1);
    layer.streamed = word_of(beats, 2);
    layer.patches = word_of(beats, 3);
    layer.rows = word_of(beats, 4);
    layer.adds = word_of(beats, 5) != 0;
    layer.passes = word_of(beats, 6) != 0;
    layer.pools = word_of(beats, 7) != 0;
    layer.experts = word_of(beats, 8);
    layer.slots = word_of(beats, 9);
    layer.shared = word_of(beats, 10);
    layer.tiles = word_of(beats, 11);
    layer.window = word_of(beats, 11);
    layer.norm_at = word_of(beats, 12);
    layer.input_at = word_of(beats, 13);
    layer.residual_at = word_of(beats, 14);
    layer.router_at = word_of(beats, 15);
    layer.up_at = word_of(beats, 16);
    layer.down_at = word_of(beats, 17);
    layer.output_at = word_of(beats, 18);
    layer.score_multiplier = word_of(beats, 19);
    layer.mixed_one = word_of(beats, 20);
    layer.hidden_multiplier = word_of(beats, 21);
    layer.up_offset = word_of(beats, 22);
    layer.query_latent_epsilon = (unsigned)(word_of(beats, 21));
    layer.key_latent_epsilon = (unsigned)(word_of(beats, 22));
    layer.up_limit = word_of(beats, 23);
    layer.shared_gate = word_of(beats, 24);
    layer.epsilon = (long long)(word_of(beats, 26)) << 32 | (unsigned)(word_of(beats, 25));
    layer.past = word_of(beats, 27);
    layer.turns_at = word_of(beats, 28);
    layer.cache_at = word_of(beats, 29);
    layer.key_norm_epsilon = (unsigned)(word_of(beats, 30));
    layer.query_norm_epsilon = (unsigned)(word_of(beats, 31));
}

// Read parameters and tokens as read_stream does, or patches instead of tokens: int8 chunks from the same place on.
template <class Block>
void read_inputs(const beat_t* norm_memory, int norm_at, const beat_t* memory, int at, int streamed, int patches,
                 hls::stream<beat_t>& norm_beats, hls::stream<beat_t>& beats, hls::stream<beat_t>& patch_beats) {
    typedef memory_sizes<Block> S;
    read_beats<S::NORM_BEATS>(norm_memory, norm_at, S::NORM_BEATS, norm_beats);
    read_beats<S::STREAM_BEATS>(memory, at, blocks_of(2 * streamed * Block::WIDTH, BEAT_BYTES), beats);
    read_beats<Block::PATCH_BEATS>(memory, at, blocks_of(patches * Block::LANES, BEAT_BYTES), patch_beats);
}

// Send normalised tokens to the experts and, if there are experts to choose from, to the router; send patches to the
// experts alone.
template <class Block>
void feed_tokens(int streamed, int patches, int experts, hls::stream<typename types<Block>::chunk_t>& tokens,
                 hls::stream<beat_t>& patch_beats, hls::stream<typename types<Block>::chunk_t>& to_router,
                 hls::stream<typename types<Block>::chunk_t>& to_experts) {
    typedef sizes<Block> S;
    const int CHUNKS_PER_BEAT = BEAT_BYTES / Block::LANES;
feed_chunks:
    for (int i = 0; i < streamed * S::WIDTH_CHUNKS; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::MAX_TOKENS*S::WIDTH_CHUNKS
#pragma HLS PIPELINE II=1 style=stp
        const typename types<Block>::chunk_t chunk = tokens.read();
        if (experts > 0) to_router.write(chunk);
        to_experts.write(chunk);
    }
    beat_t beat = 0;
feed_patches:
    for (int i = 0; i < patches; i++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::PATCH_BEATS*CHUNKS_PER_BEAT
#pragma HLS PIPELINE II=1 style=stp
        if (i % CHUNKS_PER_BEAT == 0) beat = patch_beats.read();
        to_experts.write(unpack<8, Block::LANES>(beat));
        beat >>= 8 * Block::LANES % BEAT_BITS;
    }
}

}  // namespace moec
#endif
