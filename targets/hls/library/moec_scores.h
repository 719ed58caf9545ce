// Processes: how each query of a head weighs the keys. Scores first, then their softmax, one query behind.
#ifndef MOEC_SCORES_H
#define MOEC_SCORES_H
#include "moec_arithmetic.h"
#include "moec_softmax.h"

namespace moec {

template <class Block> struct attention_sizes {
    static const int CHUNKS = Block::HIDDEN_TILE / Block::LANES;               // steps through a row of a head
    static const int KEY_HEADS = Block::HEADS / Block::SHARING;
    static const int KEY_GROUPS = blocks_of(Block::MAX_KEYS, Block::LANES);  // keys that are scored together
    static const int KEYS_SUM_BITS = 8 + bits_for(Block::MAX_KEYS) + 1;
    static const int SINK_OCTAVES = 12;        // that a sink may weigh more than the best key
    static const int SINK_BITS = 9 + SINK_OCTAVES;
    static const int WEIGHT_SUM_BITS = Block::SINKS && KEYS_SUM_BITS < SINK_BITS + 1 ? SINK_BITS + 1 : KEYS_SUM_BITS;
    static const int SINK_BEATS = blocks_of(4 * Block::HEADS, BEAT_BYTES);
    static const int MIXED_BITS = 16 + bits_for(Block::MAX_KEYS);            // of values times weights, summed
    static const int MOST_STEPS = Block::MAX_TOKENS * KEY_GROUPS * CHUNKS;   // of a head

    static_assert(Block::HEADS % Block::SHARING == 0, "as many heads share the keys of each");
};

// Where tokens look back a window of keys, their own included, those in front of all windows of a call are left out, in
// whole groups: how many of `past` are left. Positions in the processes from here on count from these.
template <class Block> inline int seen_of(int past, int window) {
#pragma HLS INLINE
    if (!Block::WINDOWED || past < window) return past;
    return past - (past - window + 1) / Block::LANES * Block::LANES;
}

// How many groups in front of its own a token may look back.
template <class Block> inline int groups_back(int window) {
#pragma HLS INLINE
    return Block::WINDOWED ? blocks_of(window - 1, Block::LANES) : attention_sizes<Block>::KEY_GROUPS;
}

// The first group of keys that the token at a position meets. A token meets as many groups as the one in front of it,
// or one more: in the first may be keys that its window has left behind.
template <class Block> inline int first_group(int position, int back) {
#pragma HLS INLINE
    return Block::WINDOWED && position / Block::LANES > back ? position / Block::LANES - back : 0;
}

// The group behind the last one that the token at a position meets, of `keys` there are: of all of them, or of those up
// to itself.
template <class Block> inline int groups_of(int keys, int position) {
#pragma HLS INLINE
    return Block::CAUSAL ? position / Block::LANES + 1 : blocks_of(keys, Block::LANES);
}

// How many groups in front of their own the tokens at the positions below n meet together.
template <class Block> inline int groups_below(int n, int back) {
#pragma HLS INLINE
    const int near = Block::WINDOWED && n > back * Block::LANES ? back * Block::LANES : n;
    const int whole = near / Block::LANES, rest = near % Block::LANES;
    return whole * (whole - 1) / 2 * Block::LANES + whole * rest + (n - near) * back;
}

// How many all queries of a head meet together: those of `tokens` tokens behind `past` others.
template <class Block> inline int groups_of_all(int past, int tokens, int back) {
#pragma HLS INLINE
    if (!Block::CAUSAL) return tokens * blocks_of(past + tokens, Block::LANES);
    return groups_below<Block>(past + tokens, back) - groups_below<Block>(past, back) + tokens;
}

template <class Block> struct attention_types {
    typedef lanes_t<Block::LOGIT_BITS, Block::LANES> scores_t;
    struct weights_t { ap_uint<8> lane[Block::LANES]; };  // 255 stands for the weight of a query's best key
    typedef lanes_t<attention_sizes<Block>::MIXED_BITS, Block::LANES> mixed_t;
    typedef ap_uint<20> reciprocal_t;
};

// Per head of keys: these come first, of `past` tokens and of those of the call, and are kept, LANES of them side by
// side. Then every query meets all that it may; scores of LANES keys leave at a time. Keys behind a query, beyond the
// last token, or in front of a window, give nonsense, which weigh_keys leaves out.
template <class Block>
void score_keys(int past, int window, int tokens, hls::stream<typename types<Block>::chunk_t>& rows,
                hls::stream<typename attention_types<Block>::scores_t>& scores) {
    typedef attention_sizes<Block> S;
    typedef typename types<Block>::chunk_t chunk_t;
    chunk_t keys[Block::LANES][S::KEY_GROUPS * S::CHUNKS];
#pragma HLS AGGREGATE variable=keys compact=bit
#pragma HLS ARRAY_PARTITION variable=keys type=complete dim=1
#pragma HLS BIND_STORAGE variable=keys type=ram_s2p impl=bram
    chunk_t query[S::CHUNKS];
#pragma HLS AGGREGATE variable=query compact=bit
#pragma HLS ARRAY_PARTITION variable=query type=complete
    ap_int<Block::LOGIT_BITS> sums[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=sums type=complete
    const int seen = seen_of<Block>(past, window), back = groups_back<Block>(window);
    const int count = tokens > 0 ? seen + tokens : 0;
    const int steps = Block::SHARING * groups_of_all<Block>(seen, tokens, back) * S::CHUNKS;
score_heads:
    for (int h = 0; h < S::KEY_HEADS; h++) {
    score_read_keys:
        for (int t = 0; t < count; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_KEYS
        score_read_key:
            for (int c = 0; c < S::CHUNKS; c++) {
#pragma HLS PIPELINE II=1 style=stp
                keys[t % Block::LANES][t / Block::LANES * S::CHUNKS + c] = rows.read();
            }
        }
        int begin = first_group<Block>(seen, back) * S::CHUNKS, places = groups_of<Block>(count, seen) * S::CHUNKS;
        int place = begin, chunk = 0, position = seen;
    // One loop with counters: how often the inner ones would run is known at run time only, so they would not be
    // flattened, and the pipeline would drain for each query.
    score_steps:
        for (int step = 0; step < steps; step++) {
#pragma HLS LOOP_TRIPCOUNT min=S::CHUNKS max=Block::SHARING*S::MOST_STEPS
#pragma HLS PIPELINE II=1 style=stp
            if (place == begin + chunk) query[chunk] = rows.read();  // with the first keys
            typename attention_types<Block>::scores_t result;
            for (int r = 0; r < Block::LANES; r += 2) {
#pragma HLS UNROLL
                ap_int<Block::LOGIT_BITS> sum0, sum1;
                dot_pair<Block, Block::LOGIT_BITS>(query[chunk], keys[r][place], 0, keys[r + 1][place], 0, sum0, sum1);
                sums[r] = chunk == 0 ? sum0 : ap_int<Block::LOGIT_BITS>(sums[r] + sum0);
                sums[r + 1] = chunk == 0 ? sum1 : ap_int<Block::LOGIT_BITS>(sums[r + 1] + sum1);
                result.lane[r] = sums[r];
                result.lane[r + 1] = sums[r + 1];
            }
            if (chunk == S::CHUNKS - 1) scores.write(result);
            chunk = chunk == S::CHUNKS - 1 ? 0 : chunk + 1;
            place++;
            if (place == places) {
                position = position == count - 1 ? seen : position + 1;
                begin = first_group<Block>(position, back) * S::CHUNKS;
                places = groups_of<Block>(count, position) * S::CHUNKS;
                place = begin;
            }
        }
    }
}

// A divider with a place of its own: it is as deep as its result has bits, and only passed once per query.
template <class Block>
inline ap_uint<20> reciprocal_of(const ap_uint<attention_sizes<Block>::WEIGHT_SUM_BITS>& sum, int one) {
#pragma HLS INLINE
    return ap_uint<20>((ap_uint<28>(one) + (sum >> 1)) / sum);
}

// Of the scores from `begin` to `end`, by a tree: a chain of LANES comparisons would take more than a cycle.
template <class Block>
inline ap_int<Block::LOGIT_BITS> largest_of(const typename attention_types<Block>::scores_t& scores, int begin,
        int end) {
#pragma HLS INLINE
    typedef ap_int<Block::LOGIT_BITS> score_t;
    score_t best[Block::LANES];
#pragma HLS ARRAY_PARTITION variable=best type=complete
    for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
        best[i] = i >= begin && i < end ? scores.lane[i] : score_t(score_t(1) << (Block::LOGIT_BITS - 1));
    }
    for (int half = Block::LANES / 2; half > 0; half /= 2) {
#pragma HLS UNROLL
        for (int i = 0; i < half; i++) {
#pragma HLS UNROLL
            if (best[i + half] > best[i]) best[i] = best[i + half];
        }
    }
    return best[0];
}

// A sink is something that a head may weigh beside keys, and that has no value: how many places in the table of powers
// a score of 0 is below it, and SINK_OCTAVES more. Its weight, where 255 stands for that of the best key.
template <class Block>
inline ap_uint<attention_sizes<Block>::SINK_BITS> sink_weight(const ap_int<Block::LOGIT_BITS>& largest, int sink,
        int multiplier) {
#pragma HLS INLINE
    typedef attention_sizes<Block> S;
    const ap_int<Block::LOGIT_BITS + 17> places = (largest * ap_int<17>(multiplier)) >> Block::SCORE_SHIFT;
    const ap_int<Block::LOGIT_BITS + 34> below = places + sink;
    const ap_uint<15> exponent = below < 0 ? ap_uint<15>(0) : below > 32767 ? ap_uint<15>(32767) : ap_uint<15>(below);
    const ap_uint<26> term = power_of_half<Block>(Block::LANES, exponent) * ap_uint<8>(255);
    return ap_uint<S::SINK_BITS>((term + (1 << (16 - S::SINK_OCTAVES))) >> (17 - S::SINK_OCTAVES));
}

// sinks: of each head, where there are some. kept: one query; its scores are read where they make room for the next
// one's, which come straight from a channel.
template <class Block>
inline void weigh_heads(int past, int window, int tokens, int score_multiplier, int mixed_one,
    const ap_int<32> sinks[Block::HEADS],
                        typename attention_types<Block>::scores_t kept[attention_sizes<Block>::KEY_GROUPS],
                        hls::stream<typename attention_types<Block>::scores_t>& scores,
                        hls::stream<typename attention_types<Block>::weights_t>& weights,
                        hls::stream<typename attention_types<Block>::reciprocal_t>& reciprocals) {
#pragma HLS INLINE
    typedef attention_sizes<Block> S;
    typedef ap_int<Block::LOGIT_BITS> score_t;
    const int seen = seen_of<Block>(past, window), back = groups_back<Block>(window), count = seen + tokens;
    // A query is weighed in as many steps as the next one is scored in, which meets as many groups, or one more.
    const int last = groups_of<Block>(count, count - 1) - first_group<Block>(count - 1, back);
    const int steps = tokens > 0 ? groups_of_all<Block>(seen, tokens, back) + last : 0;
weigh_each_head:
    for (int h = 0; h < Block::HEADS; h++) {
        // A head ends with its last query's weights: they must not wait for the next head, whose values wait for them.
        score_t largest = 0, largest_kept = 0;
        ap_uint<S::WEIGHT_SUM_BITS> sum = 0;
        int query = 0, group = 0, begin = first_group<Block>(seen, back), begin_kept = 0;
        int groups = groups_of<Block>(count, seen) - begin, groups_kept = 0;
        // keys, but for those that the window has left behind
        int met = Block::CAUSAL ? seen + 1 : count, met_kept = 0;
    weigh_steps:
        for (int step = 0; step < steps; step++) {
#pragma HLS LOOP_TRIPCOUNT min=2 max=(Block::MAX_TOKENS+1)*S::KEY_GROUPS
#pragma HLS PIPELINE II=1 style=stp
            if (group == 0) {
                largest_kept = largest;
                largest = score_t(1) << (Block::LOGIT_BITS - 1);
                sum = 0;
            }
            const typename attention_types<Block>::scores_t before = kept[group];
            typename attention_types<Block>::weights_t weight;
            ap_uint<S::WEIGHT_SUM_BITS> group_sum = 0;  // apart: one addition and one comparison until the next step
            for (int i = 0; i < Block::LANES; i++) {
#pragma HLS UNROLL
                const ap_uint<18> term = softmax_term<Block>(i,
                    ap_uint<Block::LOGIT_BITS + 1>(largest_kept - before.lane[i]), score_multiplier);
                const int key = (begin_kept + group) * Block::LANES + i;
                const bool is_met = key < met_kept && (!Block::WINDOWED || key >= met_kept - window);
                weight.lane[i] = is_met ? ap_uint<8>((term * ap_uint<8>(255) + (1 << 16)) >> 17) : ap_uint<8>(0);
                group_sum += weight.lane[i];
            }
            sum += group_sum;
            if (query < tokens) {
                const typename attention_types<Block>::scores_t given = scores.read();
                kept[group] = given;
                const int end = met - (begin + group) * Block::LANES;
                const score_t best = largest_of<Block>(given, Block::WINDOWED ? end - window : 0, end);
                if (best > largest) largest = best;
            }
            if (group < groups_kept) {
                weights.write(weight);
                ap_uint<S::WEIGHT_SUM_BITS> total = sum;
                if (Block::SINKS) total += sink_weight<Block>(largest_kept, sinks[h], score_multiplier);
                if (group == groups_kept - 1) reciprocals.write(reciprocal_of<Block>(total, mixed_one));
            }
            group++;
            if (group == groups) {
                group = 0;
                query++;
                groups_kept = groups;
                met_kept = met;
                begin_kept = begin;
                if (Block::CAUSAL && query < tokens) {
                    met++;
                    begin = first_group<Block>(seen + query, back);
                    groups = groups_of<Block>(count, seen + query) - begin;
                }
            }
        }
    }
}

// weights: those of a query, LANES keys at a time; reciprocals: what their weighted sum of values is multiplied with,
// mixed_one over the sum of its weights. score_multiplier: from scores to places in the table of powers.
template <class Block>
void weigh_keys(int past, int window, int tokens, int score_multiplier, int mixed_one,
                hls::stream<typename attention_types<Block>::scores_t>& scores,
                hls::stream<typename attention_types<Block>::weights_t>& weights,
                hls::stream<typename attention_types<Block>::reciprocal_t>& reciprocals) {
    typename attention_types<Block>::scores_t kept[attention_sizes<Block>::KEY_GROUPS];
#pragma HLS AGGREGATE variable=kept compact=bit
#pragma HLS BIND_STORAGE variable=kept type=ram_s2p impl=lutram
    const ap_int<32> none[Block::HEADS] = {0};
#pragma HLS ARRAY_PARTITION variable=none type=complete
    weigh_heads<Block>(past, window, tokens, score_multiplier, mixed_one, none, kept, scores, weights, reciprocals);
}

// Beside sinks, int32[HEADS].
template <class Block>
void weigh_keys_and_sinks(int past, int window, int tokens, int score_multiplier, int mixed_one,
    hls::stream<beat_t>& sink_beats,
                          hls::stream<typename attention_types<Block>::scores_t>& scores,
                          hls::stream<typename attention_types<Block>::weights_t>& weights,
                          hls::stream<typename attention_types<Block>::reciprocal_t>& reciprocals) {
    typename attention_types<Block>::scores_t kept[attention_sizes<Block>::KEY_GROUPS];
#pragma HLS AGGREGATE variable=kept compact=bit
#pragma HLS BIND_STORAGE variable=kept type=ram_s2p impl=lutram
    ap_int<32> sinks[Block::HEADS];
#pragma HLS BIND_STORAGE variable=sinks type=ram_s2p impl=lutram
    beat_t beat = 0;
keep_sinks:
    for (int h = 0; h < Block::HEADS; h++) {
#pragma HLS PIPELINE II=1 style=stp
        if (h % (BEAT_BYTES / 4) == 0) beat = sink_beats.read();
        sinks[h] = ap_int<32>(beat.range(31, 0));
        beat >>= 32;
    }
    weigh_heads<Block>(past, window, tokens, score_multiplier, mixed_one, sinks, kept, scores, weights, reciprocals);
}

}  // namespace moec
#endif
