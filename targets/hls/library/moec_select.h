// Process: of each token, the experts that it goes to and how they are weighed.
#ifndef MOEC_SELECT_H
#define MOEC_SELECT_H
#include "moec_softmax.h"

namespace moec {

// The sigmoid of a logit, from a table of its magnitude: 2^17 stands for 1. Never 0, so that a sum of them is not.
// multiplier: from logits to places in the table.
template <class Block> inline ap_uint<18> sigmoid_of(int lane, const ap_int<Block::LOGIT_BITS>& logit, int multiplier) {
#pragma HLS INLINE
    const ap_uint<Block::LOGIT_BITS> size = logit < 0 ? ap_uint<Block::LOGIT_BITS>(-logit)
        : ap_uint<Block::LOGIT_BITS>(logit);
    const ap_uint<Block::LOGIT_BITS + 16> place = (size * ap_uint<16>(multiplier)) >> Block::SCORE_SHIFT;
    const ap_uint<18> upper = Block::sigmoid_table(lane, place > 2047 ? ap_uint<11>(2047) : ap_uint<11>(place));
    return logit < 0 ? ap_uint<18>((1 << 17) - upper) : upper;
}

template <class Block> struct candidate_t {
    ap_int<sizes<Block>::CHOICE_BITS> choice;  // what experts are chosen by
    ap_int<Block::LOGIT_BITS> logit;
    expert_t expert;
};

// How a logit weighs, given the largest one; and by what an expert is chosen.
template <class Block, scoring_t SCORING> struct score;

template <class Block> struct score<Block, SOFTMAX> {
    typedef ap_int<Block::LOGIT_BITS> logit_t;
    static ap_uint<18> term(int lane, const logit_t& logit, const logit_t& largest, int multiplier) {
#pragma HLS INLINE
        return softmax_term<Block>(lane, ap_uint<Block::LOGIT_BITS + 1>(largest - logit), multiplier);
    }
    static ap_int<sizes<Block>::CHOICE_BITS> choice(const logit_t& logit, const logit_t&, int) {
#pragma HLS INLINE
        return logit;
    }
};

template <class Block> struct score<Block, SIGMOID> {
    typedef ap_int<Block::LOGIT_BITS> logit_t;
    static ap_uint<18> term(int lane, const logit_t& logit, const logit_t&, int multiplier) {
#pragma HLS INLINE
        return sigmoid_of<Block>(lane, logit, multiplier);
    }
    // The sigmoid keeps the order of logits, so where it is not added to something it need not be computed.
    static ap_int<sizes<Block>::CHOICE_BITS> choice(const logit_t& logit, const logit_t& bias, int multiplier) {
#pragma HLS INLINE
        if (!Block::BIASED_CHOICE && !Block::GROUP_SUM) return logit;
        return ap_int<20>(sigmoid_of<Block>(Block::SLOTS, logit, multiplier)) + bias;
    }
};

// A chain of registers sorted from large to small; of equals the one that came first stays in front.
template <class Block> inline void insert(candidate_t<Block> best[Block::SLOTS], const candidate_t<Block>& given) {
#pragma HLS INLINE
    for (int j = Block::SLOTS - 1; j >= 0; j--) {
#pragma HLS UNROLL
        const bool before_previous = j > 0 && given.choice > best[j > 0 ? j - 1 : 0].choice;
        if (before_previous) best[j] = best[j > 0 ? j - 1 : 0];
        else if (given.choice > best[j].choice) best[j] = given;
    }
}

// Where a layer has fewer slots than there are, the others name nobody.
template <class Block>
inline typename types<Block>::route_t weigh(const candidate_t<Block> best[Block::SLOTS], const ap_uint<26>& sum_of_all,
    int slots,
                                            int multiplier) {
#pragma HLS INLINE
    ap_uint<18> terms[Block::SLOTS];
#pragma HLS ARRAY_PARTITION variable=terms type=complete
    ap_uint<26> sum = 0;
    for (int j = 0; j < Block::SLOTS; j++) {
#pragma HLS UNROLL
        terms[j] = score<Block, Block::SCORING>::term(j, best[j].logit, best[0].logit, multiplier);
        if (j < slots) sum += terms[j];
    }
    if (!Block::NORMALIZED) sum = Block::SCORING == SIGMOID ? ap_uint<26>(1 << 17) : sum_of_all;
    const ap_uint<34> reciprocal = (ap_uint<34>(1) << 33) / sum;
    typename types<Block>::route_t route;
    for (int j = 0; j < Block::SLOTS; j++) {
#pragma HLS UNROLL
        route.expert[j] = j < slots ? best[j].expert : expert_t(NOBODY);
        route.gate[j] = ap_uint<17>((terms[j] * reciprocal) >> 17);
    }
    return route;
}

// How good a group of experts is: by its best one, or by the sum of its two best.
template <class Block> struct group_t {
    ap_int<sizes<Block>::CHOICE_BITS> first, second;
};

template <class Block> inline void add_to_group(group_t<Block>& group,
        const ap_int<sizes<Block>::CHOICE_BITS>& choice) {
#pragma HLS INLINE
    if (choice > group.first) {
        group.second = group.first;
        group.first = choice;
    } else if (choice > group.second) group.second = choice;
}

// The GROUPS_KEPT best groups; of equals those that come first.
template <class Block> inline void keep_best_groups(const group_t<Block> groups[Block::GROUPS],
        bool kept[Block::GROUPS]) {
#pragma HLS INLINE
    const bool SUMS_TWO = Block::GROUP_SUM && Block::EXPERTS > Block::GROUPS;
    ap_int<sizes<Block>::CHOICE_BITS> value[Block::GROUPS];
#pragma HLS ARRAY_PARTITION variable=value type=complete
    for (int g = 0; g < Block::GROUPS; g++) {
#pragma HLS UNROLL
        value[g] = groups[g].first;
        if (SUMS_TWO) value[g] += groups[g].second;
    }
    for (int g = 0; g < Block::GROUPS; g++) {
#pragma HLS UNROLL
        int better = 0;
        for (int h = 0; h < Block::GROUPS; h++) {
#pragma HLS UNROLL
            if (value[h] > value[g] || (value[h] == value[g] && h < g)) better++;
        }
        kept[g] = better < Block::GROUPS_KEPT;
    }
}

// One expert per cycle, also where the layer has fewer, so that loops have constant ends: first, where there are
// groups, for how good they are; then for the chain of the best; then, where gates are parts of the softmax of all, for
// its sum. Logits come in the first round; later ones read what it has kept. In front of all come biases on the choice,
// if there are any.
template <class Block>
void select(int tokens, int experts, int slots, int score_multiplier,
    hls::stream<typename types<Block>::logits_t>& logits,
            hls::stream<typename types<Block>::route_t>& routes) {
    typedef candidate_t<Block> candidate;
    const bool SUMS_ALL = Block::SCORING == SOFTMAX && !Block::NORMALIZED;
    const int GROUP_STEPS = Block::GROUPS > 1 ? Block::EXPERTS : 0;
    const int CHOICE_STEPS = GROUP_STEPS + Block::EXPERTS;
    const int STEPS = CHOICE_STEPS + (SUMS_ALL ? Block::EXPERTS : 0);
    const ap_int<sizes<Block>::CHOICE_BITS> LEAST = ap_int<sizes<Block>::CHOICE_BITS>(1)
        << (sizes<Block>::CHOICE_BITS - 1);
    typename types<Block>::logits_t given;
#pragma HLS ARRAY_PARTITION variable=given.of type=complete
    ap_int<Block::LOGIT_BITS> all[Block::EXPERTS];
#pragma HLS BIND_STORAGE variable=all type=ram_s2p impl=lutram
    ap_int<Block::LOGIT_BITS> choice_biases[Block::EXPERTS];
#pragma HLS BIND_STORAGE variable=choice_biases type=ram_s2p impl=lutram
    candidate best[Block::SLOTS];
#pragma HLS ARRAY_PARTITION variable=best type=complete
    group_t<Block> groups[Block::GROUPS];
#pragma HLS ARRAY_PARTITION variable=groups type=complete
    bool kept[Block::GROUPS];
#pragma HLS ARRAY_PARTITION variable=kept type=complete
    ap_uint<26> sum_of_all = 0;
    expert_t expert = 0, group = 0, member = 0, place = 0;  // place: in the word of logits
    const int moved = Block::BIASED_CHOICE ? experts : 0;
select_biases:
    for (int e = 0; e < moved; e++) {
#pragma HLS LOOP_TRIPCOUNT min=0 max=Block::EXPERTS
#pragma HLS PIPELINE II=1 style=stp
        if (place == 0) given = logits.read();
        choice_biases[e] = given.of[place];
        place = place == Block::ROUTER_EXPERTS - 1 ? expert_t(0) : expert_t(place + 1);
    }
    place = 0;
    const int routed = experts > 0 ? tokens : 0;
select_tokens:
    for (int t = 0; t < routed; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    select_experts:
        for (int i = 0; i < STEPS; i++) {
#pragma HLS PIPELINE II=1 style=stp
            if (i == 0) {
                for (int j = 0; j < Block::SLOTS; j++) {
#pragma HLS UNROLL
                    best[j].choice = LEAST;
                    best[j].logit = 0;
                    best[j].expert = 0;
                }
                for (int g = 0; g < Block::GROUPS; g++) {
#pragma HLS UNROLL
                    groups[g].first = LEAST;
                    groups[g].second = LEAST;
                    kept[g] = true;
                }
                sum_of_all = 0;
            }
            if (GROUP_STEPS > 0 && i == GROUP_STEPS) keep_best_groups<Block>(groups, kept);
            if (i < Block::EXPERTS && place == 0) given = logits.read();
            candidate one;
            one.expert = expert;
            one.logit = i < Block::EXPERTS ? given.of[place] : all[expert];
            if (STEPS > Block::EXPERTS && i < Block::EXPERTS) all[expert] = one.logit;
            const ap_int<Block::LOGIT_BITS> bias = Block::BIASED_CHOICE ? choice_biases[expert]
                : ap_int<Block::LOGIT_BITS>(0);
            one.choice = score<Block, Block::SCORING>::choice(one.logit, bias, score_multiplier);
            const bool exists = expert < experts;
            if (i < GROUP_STEPS) add_to_group<Block>(groups[group], one.choice);
            else if (i < CHOICE_STEPS && exists && kept[group]) insert<Block>(best, one);
            else if (i >= CHOICE_STEPS && exists) sum_of_all += score<Block,
                Block::SCORING>::term(Block::SLOTS, one.logit, best[0].logit, score_multiplier);
            const bool last = expert == Block::EXPERTS - 1, last_member = member == Block::EXPERTS / Block::GROUPS - 1;
            place = last || place == Block::ROUTER_EXPERTS - 1 ? expert_t(0) : expert_t(place + 1);
            expert = last ? expert_t(0) : expert_t(expert + 1);
            member = last_member ? expert_t(0) : expert_t(member + 1);
            if (last_member) group = last ? expert_t(0) : expert_t(group + 1);
            if (i == STEPS - 1) routes.write(weigh<Block>(best, sum_of_all, slots, score_multiplier));
        }
    }
}

}  // namespace moec
#endif
