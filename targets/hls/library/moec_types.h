// Types that travel between the processes of a MoE block, and the sizes that follow from its configuration.
//
// A configuration is a struct of constants; every process is a template over it. It says what becomes wires and
// memories, for the largest layer: sizes, shifts, widths of sums, which the generator derives from the weights, and
// asserts below check what hardware demands. What another layer has others of, processes take as scalars.
#ifndef MOEC_TYPES_H
#define MOEC_TYPES_H
#include <ap_int.h>
#include <hls_stream.h>

namespace moec {

const int BEAT_BITS = 512;  // of one transfer on an AXI bus
const int BEAT_BYTES = BEAT_BITS / 8;
typedef ap_uint<BEAT_BITS> beat_t;

// Bits that tell n things apart.
constexpr int bits_for(long n) { return n <= 1 ? 0 : 1 + bits_for((n + 1) / 2); }
constexpr int blocks_of(int items, int size) { return (items + size - 1) / size; }
constexpr int least_of(int a, int b) { return a < b ? a : b; }

// A table of the activation of every int8, from -128 on, comes in front of the weights of the first product: int16.
const int ACTIVATION_ENTRIES = 256;
const int ACTIVATION_BEATS = ACTIVATION_ENTRIES * 16 / BEAT_BITS;

enum scoring_t { SOFTMAX, SIGMOID };
enum norm_t { NO_NORM, LAYER_NORM, RMS_NORM };

// Signed numbers side by side, in one word of a channel or a memory.
template <int BITS, int LANES> struct lanes_t { ap_int<BITS> lane[LANES]; };

// One output channel's parameters as they lie in memory: 8 bytes, 8 channels per beat.
const int PARAMETER_BITS = 64;
const int PARAMETERS_PER_BEAT = BEAT_BITS / PARAMETER_BITS;
struct parameter_t {
    ap_int<32> bias;
    ap_uint<16> multiplier;
};
struct parameters_t { ap_uint<48> of[PARAMETERS_PER_BEAT]; };  // of neighbouring channels: what a beat holds

// What sums of groups of inputs are multiplied with, of neighbouring rows: what a beat holds. Steps of a group may be
// negative.
const int MULTIPLIERS_PER_BEAT = BEAT_BITS / 16;
struct multipliers_t { ap_int<16> of[MULTIPLIERS_PER_BEAT]; };

// An expert's number, or how many there are.
typedef ap_uint<9> expert_t;
const int NOBODY = 511;  // no expert's number

// Work that travels through the pipeline: one hidden tile of one expert.
struct job_t {
    expert_t expert;
    ap_uint<16> tile;
    ap_uint<16> count;  // tokens of this expert
    bool first, last;   // of the expert's tiles
    bool end;           // no job: there is no more work
};

// One token of the current job.
struct item_t {
    ap_uint<16> token;
    ap_uint<17> gate;  // 65536 stands for 1
};

template <class Block> struct sizes {
    static const int LANES = Block::LANES;
    static const int PROJECTIONS = Block::GATED ? 2 : 1;                 // rows of the first matrix per hidden unit
    static const int ROWS_UP = PROJECTIONS * LANES;                      // of the first array
    // a memory has two ports, so two lanes share one
    static const int ACTIVATION_COPIES = LANES / 2;
    static const int WIDTH_CHUNKS = Block::WIDTH / LANES;                // steps through a token
    static const int TILE_CHUNKS = Block::HIDDEN_TILE / LANES;           // steps through the hidden units of a tile
    static const int ROWS_PER_BEAT = BEAT_BITS / (LANES * Block::WEIGHT_BITS);  // of the weights that one step takes
    static const int BANKS_UP = ROWS_UP / ROWS_PER_BEAT;                 // memories, one beat wide, that feed an array
    static const int BANKS_DOWN = LANES / ROWS_PER_BEAT;
    static const int WEIGHT_BEATS_UP = BANKS_UP * TILE_CHUNKS * WIDTH_CHUNKS;
    static const int WEIGHT_BEATS_DOWN = BANKS_DOWN * TILE_CHUNKS * WIDTH_CHUNKS;
    static const int CHANNELS_UP = PROJECTIONS * Block::HIDDEN_TILE;     // of a tile
    static const int PARAMETER_BEATS_UP = blocks_of(CHANNELS_UP, PARAMETERS_PER_BEAT);
    static const int PARAMETER_BEATS_DOWN = blocks_of(Block::WIDTH, PARAMETERS_PER_BEAT);
    // memories that hold the parameters of all rows
    static const int PARAMETER_BANKS_UP = ROWS_UP / PARAMETERS_PER_BEAT;
    static const int PARAMETER_BANKS_DOWN = LANES / PARAMETERS_PER_BEAT;
    // Multipliers of groups: a place is those of all rows for one group. A beat is one place, a part, or several.
    static const bool GROUPED = Block::GROUP > 0;                        // else a channel has one multiplier
    static const int GROUP_CHUNKS = GROUPED ? Block::GROUP / LANES : 1;  // steps through a group
    static const int GROUPS_UP = blocks_of(WIDTH_CHUNKS, GROUP_CHUNKS);  // of a token
    static const int GROUPS_DOWN = blocks_of(TILE_CHUNKS, GROUP_CHUNKS);  // of a tile
    static const int MULTIPLIER_BANKS_UP = blocks_of(ROWS_UP, MULTIPLIERS_PER_BEAT);
    static const int MULTIPLIER_BANKS_DOWN = blocks_of(LANES, MULTIPLIERS_PER_BEAT);
    static const int MULTIPLIER_WORDS_UP = blocks_of(TILE_CHUNKS * GROUPS_UP,
        MULTIPLIER_BANKS_UP * MULTIPLIERS_PER_BEAT / ROWS_UP);
    static const int MULTIPLIER_WORDS_DOWN = blocks_of(WIDTH_CHUNKS * GROUPS_DOWN,
        MULTIPLIER_BANKS_DOWN * MULTIPLIERS_PER_BEAT / LANES);
    static const int MULTIPLIER_BEATS_UP = GROUPED ? MULTIPLIER_BANKS_UP * MULTIPLIER_WORDS_UP : 0;
    static const int MULTIPLIER_BEATS_DOWN = GROUPED ? MULTIPLIER_BANKS_DOWN * MULTIPLIER_WORDS_DOWN : 0;
    // What is loaded for a tile is striped over AXI masters: beat i of its weights comes through master i % MASTERS and
    // goes to memory i % BANKS, so that a master has memories of its own. Of parameters and multipliers likewise, where
    // there are memories for fewer masters through the first ones.
    static const int PARAMETER_STRIPES_UP = least_of(Block::MASTERS_UP, PARAMETER_BANKS_UP);
    static const int PARAMETER_STRIPES_DOWN = least_of(Block::MASTERS_DOWN, PARAMETER_BANKS_DOWN);
    static const int MULTIPLIER_STRIPES_UP = least_of(Block::MASTERS_UP, MULTIPLIER_BANKS_UP);
    static const int MULTIPLIER_STRIPES_DOWN = least_of(Block::MASTERS_DOWN, MULTIPLIER_BANKS_DOWN);
    // The memories of a stripe.
    static const int STRIPE_UP = BANKS_UP / Block::MASTERS_UP, STRIPE_DOWN = BANKS_DOWN / Block::MASTERS_DOWN;
    static const int PARAMETER_STRIPE_UP = PARAMETER_BANKS_UP / PARAMETER_STRIPES_UP;
    static const int PARAMETER_STRIPE_DOWN = PARAMETER_BANKS_DOWN / PARAMETER_STRIPES_DOWN;
    static const int MULTIPLIER_STRIPE_UP = MULTIPLIER_BANKS_UP / MULTIPLIER_STRIPES_UP;
    static const int MULTIPLIER_STRIPE_DOWN = MULTIPLIER_BANKS_DOWN / MULTIPLIER_STRIPES_DOWN;
    static const int ROUTER_TURNS = blocks_of(Block::EXPERTS, Block::ROUTER_EXPERTS);
    static const int ALL_EXPERTS = Block::EXPERTS + Block::SHARED;
    static const int CHOICE_BITS = Block::LOGIT_BITS > 34 ? Block::LOGIT_BITS : 34;  // of what experts are chosen by
    static const int COMBINED_BITS = 16 + 17 + bits_for(Block::SLOTS + Block::SHARED);

    static_assert(LANES % 4 == 0, "four products are summed in one word");
    static_assert(LANES % PARAMETERS_PER_BEAT == 0, "the parameters of all rows must be whole beats");
    static_assert(LANES * 16 <= BEAT_BITS, "a chunk of results must fit into a beat");
    static_assert(BANKS_DOWN >= 1 && LANES % ROWS_PER_BEAT == 0, "the weights of a step must be whole beats");
    static_assert(BANKS_UP % Block::MASTERS_UP == 0 && BANKS_DOWN % Block::MASTERS_DOWN == 0,
        "a memory has one master");
    static_assert(PARAMETER_BANKS_UP % PARAMETER_STRIPES_UP == 0 && PARAMETER_BANKS_DOWN % PARAMETER_STRIPES_DOWN == 0,
        "likewise");
    static_assert(MULTIPLIER_BANKS_UP % MULTIPLIER_STRIPES_UP == 0 && MULTIPLIER_BANKS_DOWN % MULTIPLIER_STRIPES_DOWN
        == 0, "likewise");
    static_assert(Block::WIDTH % LANES == 0, "tokens are padded to whole chunks");
    static_assert(Block::HIDDEN_TILE % LANES == 0, "so are hidden units");
    static_assert(LANES % Block::ROUTER_LANES == 0, "the router takes chunks apart");
    static_assert(Block::SUM_BITS_UP <= 32 && Block::SUM_BITS_DOWN <= 32, "a sum begins with a bias of 32 bits");
    static_assert(Block::GROUP % LANES == 0, "a group is whole steps");
    static_assert(!GROUPED || Block::HIDDEN_TILE % Block::GROUP == 0, "a group of hidden units is in one tile");
    static_assert(Block::WEIGHT_BITS == 8 || Block::WEIGHT_BITS == 4, "weights are int8 or int4");
};

template <class Block> struct types {
    typedef lanes_t<8, Block::LANES> chunk_t;                                         // inputs of one step
    typedef lanes_t<16, Block::LANES> results_t;
    typedef lanes_t<Block::WEIGHT_BITS, BEAT_BITS / Block::WEIGHT_BITS> weights_t;    // one beat
    typedef ap_int<Block::LOGIT_BITS> logit_t;
    struct logits_t { logit_t of[Block::ROUTER_EXPERTS]; };                           // of neighbouring experts
    struct route_t {
        expert_t expert[Block::SLOTS];
        ap_uint<17> gate[Block::SLOTS];
    };
};

}  // namespace moec
#endif
