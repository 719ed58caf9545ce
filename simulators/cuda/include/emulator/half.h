// CUDA's two 16-bit types, `half` and `nv_bfloat16`: one template, for they differ only in how bits are read.
//
// Each operation rounds its result once, as on the device: float has more than twice the digits, so rounding sums,
// products, quotients and square roots to float first changes nothing.
#pragma once
#include <cmath>
#include <type_traits>

#include "float_bits.h"

namespace emulator {

template <float (*widen)(uint16_t), uint16_t (*narrow)(float)>
struct ShortFloat {
  uint16_t bits;

  ShortFloat() = default;
  ShortFloat(const ShortFloat&) = default;
  ShortFloat(const volatile ShortFloat& other) : bits(other.bits) {}
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  ShortFloat(Number value) : bits(narrow(float(value))) {}
  template <float (*w)(uint16_t), uint16_t (*n)(float), class = std::enable_if_t<w != widen>>
  explicit ShortFloat(ShortFloat<w, n> other) : bits(narrow(float(other))) {}

  ShortFloat& operator=(const ShortFloat&) = default;
  void operator=(ShortFloat other) volatile { bits = other.bits; }

  operator float() const { return widen(bits); }
  operator float() const volatile { return widen(bits); }
  static ShortFloat of_bits(uint16_t bits) {
    ShortFloat value;
    value.bits = bits;
    return value;
  }

  ShortFloat operator-() const { return of_bits(bits ^ 0x8000); }
  ShortFloat& operator+=(ShortFloat other) { return *this = *this + other; }
  ShortFloat& operator-=(ShortFloat other) { return *this = *this - other; }
  ShortFloat& operator*=(ShortFloat other) { return *this = *this * other; }
  ShortFloat& operator/=(ShortFloat other) { return *this = *this / other; }

  friend ShortFloat operator+(ShortFloat a, ShortFloat b) { return float(a) + float(b); }
  friend ShortFloat operator-(ShortFloat a, ShortFloat b) { return float(a) - float(b); }
  friend ShortFloat operator*(ShortFloat a, ShortFloat b) { return float(a) * float(b); }
  friend ShortFloat operator/(ShortFloat a, ShortFloat b) { return float(a) / float(b); }
  friend bool operator<(ShortFloat a, ShortFloat b) { return float(a) < float(b); }
  friend bool operator>(ShortFloat a, ShortFloat b) { return float(a) > float(b); }
  friend bool operator<=(ShortFloat a, ShortFloat b) { return float(a) <= float(b); }
  friend bool operator>=(ShortFloat a, ShortFloat b) { return float(a) >= float(b); }
  friend bool operator==(ShortFloat a, ShortFloat b) { return float(a) == float(b); }
  friend bool operator!=(ShortFloat a, ShortFloat b) { return float(a) != float(b); }
};

}  // namespace emulator

using half = emulator::ShortFloat<emulator::half_to_float, emulator::float_to_half>;
using nv_bfloat16 = emulator::ShortFloat<emulator::bfloat16_to_float, emulator::float_to_bfloat16>;
using __half = half;
using __nv_bfloat16 = nv_bfloat16;

inline float __half2float(half value) { return value; }
inline half __float2half(float value) { return value; }
inline half __float2half_rn(float value) { return value; }
inline float __bfloat162float(nv_bfloat16 value) { return value; }
inline nv_bfloat16 __float2bfloat16(float value) { return value; }
inline nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline half __ushort_as_half(unsigned short bits) { return half::of_bits(bits); }
inline unsigned short __half_as_ushort(half value) { return value.bits; }
inline nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return nv_bfloat16::of_bits(bits); }
inline unsigned short __bfloat16_as_ushort(nv_bfloat16 value) { return value.bits; }

#define EMULATOR_SHORT_FLOAT(Type)                                                      \
  inline bool __hgt(Type a, Type b) { return a > b; }                                   \
  inline bool __hge(Type a, Type b) { return a >= b; }                                  \
  inline bool __hlt(Type a, Type b) { return a < b; }                                   \
  inline bool __hle(Type a, Type b) { return a <= b; }                                  \
  inline bool __heq(Type a, Type b) { return a == b; }                                  \
  inline bool __hne(Type a, Type b) { return a != b; }                                  \
  inline bool __hisnan(Type a) { return std::isnan(float(a)); }                         \
  inline Type __hadd(Type a, Type b) { return a + b; }                                  \
  inline Type __hsub(Type a, Type b) { return a - b; }                                  \
  inline Type __hmul(Type a, Type b) { return a * b; }                                  \
  inline Type __hdiv(Type a, Type b) { return a / b; }                                  \
  inline Type __hneg(Type a) { return -a; }                                             \
  inline Type __habs(Type a) { return Type::of_bits(a.bits & 0x7fff); }                 \
  inline Type __hmax(Type a, Type b) { return std::fmax(float(a), float(b)); }          \
  inline Type __hmin(Type a, Type b) { return std::fmin(float(a), float(b)); }          \
  inline Type __hfma(Type a, Type b, Type c) { return std::fma(float(a), float(b), float(c)); } \
  inline Type hexp(Type a) { return std::exp(float(a)); }                               \
  inline Type hexp2(Type a) { return std::exp2(float(a)); }                             \
  inline Type hexp10(Type a) { return std::pow(10.0f, float(a)); }                      \
  inline Type hlog(Type a) { return std::log(float(a)); }                               \
  inline Type hlog2(Type a) { return std::log2(float(a)); }                             \
  inline Type hlog10(Type a) { return std::log10(float(a)); }                           \
  inline Type hsqrt(Type a) { return std::sqrt(float(a)); }                             \
  inline Type hrsqrt(Type a) { return 1.0f / std::sqrt(float(a)); }                     \
  inline Type hrcp(Type a) { return 1.0f / float(a); }                                  \
  inline Type hsin(Type a) { return std::sin(float(a)); }                               \
  inline Type hcos(Type a) { return std::cos(float(a)); }                               \
  inline Type htanh(Type a) { return std::tanh(float(a)); }                             \
  inline Type hfloor(Type a) { return std::floor(float(a)); }                           \
  inline Type hceil(Type a) { return std::ceil(float(a)); }                             \
  inline Type htrunc(Type a) { return std::trunc(float(a)); }                           \
  inline Type hrint(Type a) { return std::nearbyint(float(a)); }
EMULATOR_SHORT_FLOAT(half)
EMULATOR_SHORT_FLOAT(nv_bfloat16)
#undef EMULATOR_SHORT_FLOAT
