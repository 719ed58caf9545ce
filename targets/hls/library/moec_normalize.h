// Processes: tokens of a residual stream are measured; then each is normalised.
//
// Two processes, because the inverse root of a token's variance takes a long way through logic: measure_tokens sends it
// on, so nothing in its loop waits for it, and normalize_tokens works one token behind, so it need not come early.
#ifndef MOEC_NORMALIZE_H
#define MOEC_NORMALIZE_H
#include "moec_arithmetic.h"

namespace moec {

// Bits for NORM_WIDTH channels of int16. With x' = NORM_WIDTH * x - (sum of all x), which needs no division, a token is
// normalised as x' / sqrt(v), where v = NORM_WIDTH * (sum of all x^2) - (sum of all x)^2. A root mean square has no
// sums.
template <class Block> struct norm_sizes {
    static const int STEPS = Block::WIDTH / Block::NORM_LANES;  // through a token
    static const int STEPS_PER_CHUNK = Block::LANES / Block::NORM_LANES;
    static const int STEPS_PER_BEAT = BEAT_BITS / (16 * Block::NORM_LANES);
    static const int SUM_BITS = 16 + bits_for(Block::NORM_WIDTH);
    static const int SQUARES_BITS = 31 + bits_for(Block::NORM_WIDTH);
    static const int CENTERED_BITS = SUM_BITS + 1;
    static const int VARIANCE_BITS = 32 + 2 * bits_for(Block::NORM_WIDTH);
    static const int FRACTION_BITS = 12;  // of a normalised number, which is at most sqrt(NORM_WIDTH)
    static const int NORMAL_BITS = FRACTION_BITS + (bits_for(Block::NORM_WIDTH) + 1) / 2 + 2;

    static_assert(Block::LANES % Block::NORM_LANES == 0 && STEPS_PER_BEAT >= 1,
        "steps are whole parts of chunks and beats");
    static_assert(CENTERED_BITS <= 30 && NORMAL_BITS <= 27, "a wider token would need more multipliers per channel");
};

template <class Block> struct norm_types {
    typedef lanes_t<16, Block::NORM_LANES> step_t;
    struct measured_t {
        ap_int<norm_sizes<Block>::SUM_BITS> sum;
        ap_uint<16> inverse_root;  // 65536 / sqrt(v / 4^scale)
        ap_uint<6> scale;
    };
};

// v = m * 4^scale with m from 1 to 4; 11 bits of m are where the table has its inverse root, to 1 part in 2^11.
template <class Block>
inline typename norm_types<Block>::measured_t measured_of(const ap_int<norm_sizes<Block>::SUM_BITS>& sum,
                                                          const ap_uint<norm_sizes<Block>::SQUARES_BITS>& squares,
                                                          long long epsilon) {
#pragma HLS INLINE
    typedef norm_sizes<Block> S;
    const ap_uint<S::VARIANCE_BITS> most = ap_uint<S::VARIANCE_BITS>(squares) * Block::NORM_WIDTH;
    const ap_uint<S::VARIANCE_BITS> variance = most - ap_uint<S::VARIANCE_BITS>(sum * sum)
        + ap_uint<S::VARIANCE_BITS>(epsilon);
    typename norm_types<Block>::measured_t measured;
    measured.sum = sum;
    measured.scale = 0;
    for (int i = 1; i < S::VARIANCE_BITS / 2; i++) {
#pragma HLS UNROLL
        if ((variance >> (2 * i)) != 0) measured.scale = i;
    }
    const ap_uint<S::VARIANCE_BITS + 9> wide = ap_uint<S::VARIANCE_BITS + 9>(variance) << 9;
    measured.inverse_root = Block::inverse_root_table(ap_uint<11>(wide >> ap_uint<7>(2 * measured.scale)));
    return measured;
}

// beats: int16[tokens][WIDTH]. epsilon: what is added to every v.
template <class Block>
void measure_tokens(int tokens, long long epsilon, hls::stream<beat_t>& beats,
    hls::stream<typename norm_types<Block>::step_t>& steps,
                    hls::stream<typename norm_types<Block>::measured_t>& measured) {
    typedef norm_sizes<Block> S;
    beat_t beat = 0;
    ap_int<S::SUM_BITS> sum = 0;
    ap_uint<S::SQUARES_BITS> squares = 0;
    ap_uint<8> place = 0;  // of the step in its beat
measure_each:
    for (int t = 0; t < tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS
    measure_steps:
        for (int s = 0; s < S::STEPS; s++) {
#pragma HLS PIPELINE II=1 style=stp
            if (place == 0) beat = beats.read();
            place = place == S::STEPS_PER_BEAT - 1 ? ap_uint<8>(0) : ap_uint<8>(place + 1);
            const typename norm_types<Block>::step_t step = unpack<16, Block::NORM_LANES>(beat);
            beat >>= 16 * Block::NORM_LANES % BEAT_BITS;
            if (s == 0) {
                sum = 0;
                squares = 0;
            }
            // Summed up apart, so that only one addition must be done before the next step.
            ap_int<S::SUM_BITS> step_sum = 0;
            ap_uint<S::SQUARES_BITS> step_squares = 0;
            for (int i = 0; i < Block::NORM_LANES; i++) {
#pragma HLS UNROLL
                if (Block::NORM == LAYER_NORM) step_sum += step.lane[i];
                step_squares += ap_uint<32>(step.lane[i] * step.lane[i]);
            }
            sum += step_sum;
            squares += step_squares;
            steps.write(step);
            if (s == S::STEPS - 1) measured.write(measured_of<Block>(sum, squares, epsilon));
        }
    }
}

// A number of the residual stream, normalised, times the channel's multiplier, plus its bias; BITS of the result.
template <class Block, int BITS>
inline ap_int<BITS> normalize(const ap_int<16>& number, const typename norm_types<Block>::measured_t& measured,
                           const ap_uint<48>& packed) {
#pragma HLS INLINE
    typedef norm_sizes<Block> S;
    const parameter_t parameter = parameter_of(packed);
    const ap_int<S::CENTERED_BITS> centered = number * ap_int<20>(Block::NORM_WIDTH) - measured.sum;
    const ap_int<S::CENTERED_BITS + 17> product = centered * ap_int<17>(measured.inverse_root);
    const ap_int<S::NORMAL_BITS> normal = product >> ap_uint<7>(16 - S::FRACTION_BITS + measured.scale);
    ap_int<16> multiplier;
    multiplier.range(15, 0) = parameter.multiplier.range(15, 0);
    ap_int<S::NORMAL_BITS + 18> result = normal * multiplier;
    result += parameter.bias;
    result += 1 << (Block::NORM_SHIFT - 1);
    return saturate<BITS, S::NORMAL_BITS + 18>(result >> Block::NORM_SHIFT);
}

// norm_beats: a multiplier (int16) and a bias (int32) per channel, as parameter_t.
template <class Block>
void normalize_tokens(int tokens, hls::stream<beat_t>& norm_beats,
    hls::stream<typename norm_types<Block>::step_t>& steps,
                      hls::stream<typename norm_types<Block>::measured_t>& measured,
                      hls::stream<typename types<Block>::chunk_t>& normalized) {
    typedef norm_sizes<Block> S;
    ap_uint<48> of_channel[Block::WIDTH];
#pragma HLS ARRAY_PARTITION variable=of_channel type=cyclic factor=Block::NORM_LANES
#pragma HLS BIND_STORAGE variable=of_channel type=ram_s2p impl=lutram
    // One token: it is read where it makes room for the next one, which comes straight from a channel.
    typename norm_types<Block>::step_t token[S::STEPS];
#pragma HLS AGGREGATE variable=token compact=bit
#pragma HLS BIND_STORAGE variable=token type=ram_s2p impl=lutram
    typename norm_types<Block>::measured_t current;
    current.sum = 0;
    current.inverse_root = 0;
    current.scale = 0;
    beat_t beat = 0;
normalize_parameters:
    for (int c = 0; c < Block::WIDTH; c++) {
#pragma HLS PIPELINE II=1 style=stp
        if (c % PARAMETERS_PER_BEAT == 0) beat = norm_beats.read();
        of_channel[c] = beat.range(47, 0);
        beat >>= PARAMETER_BITS;
    }
    typename types<Block>::chunk_t chunk;
#pragma HLS ARRAY_PARTITION variable=chunk.lane type=complete
normalize_each:
    for (int t = 0; t <= tokens; t++) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=Block::MAX_TOKENS+1
    normalize_steps:
        for (int s = 0; s < S::STEPS; s++) {
#pragma HLS PIPELINE II=1 style=stp
            if (t > 0 && s == 0) current = measured.read();
            const typename norm_types<Block>::step_t step = token[s];
            if (t < tokens) token[s] = steps.read();
            for (int i = 0; i + Block::NORM_LANES < Block::LANES; i++) {
#pragma HLS UNROLL
                chunk.lane[i] = chunk.lane[i + Block::NORM_LANES];
            }
            for (int i = 0; i < Block::NORM_LANES; i++) {
#pragma HLS UNROLL
                const int last = Block::LANES - Block::NORM_LANES + i;
                chunk.lane[last] = normalize<Block, 8>(step.lane[i], current, of_channel[s * Block::NORM_LANES + i]);
            }
            if (t > 0 && s % S::STEPS_PER_CHUNK == S::STEPS_PER_CHUNK - 1) normalized.write(chunk);
        }
    }
}

}  // namespace moec
#endif
