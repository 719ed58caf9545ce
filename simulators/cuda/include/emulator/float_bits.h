// Conversion between float and the 16-bit formats, by their bits; rounding is to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace emulator {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  constexpr float exponent_shift = 0x1p112f;  // from a bias of 15 to one of 127; exact, also for subnormal numbers
  return float_of(sign | bits_of(float_of(magnitude << 13) * exponent_shift));
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return 0x7fff;  // the NaN that the hardware makes
  constexpr uint32_t rounds_to_infinity = 0x477ff000u, smallest_normal = 0x38800000u;
  if (magnitude >= rounds_to_infinity) return sign | 0x7c00;
  if (magnitude < smallest_normal)  // adding 0.5 leaves multiples of 2^-24 in the last bits, rounded
    return sign | uint16_t(bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f));
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return sign | uint16_t((rounded - (112u << 23)) >> 13);
}

inline float bfloat16_to_float(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000u) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float e4m3_to_float(uint8_t code) {
  const uint32_t sign = uint32_t(code & 0x80) << 24, magnitude = code & 0x7f;
  if (magnitude == 0x7f) return float_of(sign | 0x7fc00000u);
  constexpr float exponent_shift = 0x1p120f;  // from a bias of 7 to one of 127; exact, also for subnormal numbers
  return float_of(sign | bits_of(float_of(magnitude << 20) * exponent_shift));
}

inline float e2m1_to_float(uint32_t code) {
  const uint32_t sign = (code & 8) << 28, magnitude = code & 7;
  constexpr float exponent_shift = 0x1p126f;  // from a bias of 1 to one of 127; exact, also for 0.5
  return float_of(sign | bits_of(float_of(magnitude << 22) * exponent_shift));
}

inline float ue8m0_to_float(uint8_t exponent) {
  if (exponent == 0xff) return float_of(0x7fc00000u);
  return exponent == 0 ? 0x1p-127f : float_of(uint32_t(exponent) << 23);
}

inline uint32_t e4m3_pair_to_halves(uint16_t codes) {
  return uint32_t(float_to_half(e4m3_to_float(uint8_t(codes)))) |
         uint32_t(float_to_half(e4m3_to_float(uint8_t(codes >> 8)))) << 16;
}

// tf32 keeps 10 bits of the fraction; tensor cores ignore the others.
inline float truncated_to_tf32(uint32_t bits) { return float_of(bits & 0xffffe000u); }

inline uint32_t rounded_to_tf32(float value) {  // cvt.rna: ties away from zero
  const uint32_t bits = bits_of(value);
  return (bits & 0x7fffffff) >= 0x7f800000u ? bits : (bits + 0x1000) & 0xffffe000u;
}

}  // namespace emulator
