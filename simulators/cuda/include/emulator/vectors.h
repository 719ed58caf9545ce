// CUDA's short vectors of numbers, and what makes them.
#pragma once
#include "half.h"

#define EMULATOR_VECTORS(Element, name, bytes4)                                                 \
  struct name##1 { Element x; };                                                                \
  struct alignas(2 * sizeof(Element)) name##2 { Element x, y; };                                \
  struct name##3 { Element x, y, z; };                                                          \
  struct alignas(bytes4) name##4 { Element x, y, z, w; };                                       \
  inline name##1 make_##name##1(Element x) { return {x}; }                                      \
  inline name##2 make_##name##2(Element x, Element y) { return {x, y}; }                        \
  inline name##3 make_##name##3(Element x, Element y, Element z) { return {x, y, z}; }          \
  inline name##4 make_##name##4(Element x, Element y, Element z, Element w) { return {x, y, z, w}; }
EMULATOR_VECTORS(signed char, char, 4)
EMULATOR_VECTORS(unsigned char, uchar, 4)
EMULATOR_VECTORS(short, short, 8)
EMULATOR_VECTORS(unsigned short, ushort, 8)
EMULATOR_VECTORS(int, int, 16)
EMULATOR_VECTORS(unsigned, uint, 16)
EMULATOR_VECTORS(long, long, 16)
EMULATOR_VECTORS(unsigned long, ulong, 16)
EMULATOR_VECTORS(long long, longlong, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16)
EMULATOR_VECTORS(float, float, 16)
EMULATOR_VECTORS(double, double, 16)
#undef EMULATOR_VECTORS

#define EMULATOR_PAIR(Element, name)                                        \
  struct alignas(4) name {                                                  \
    Element x, y;                                                           \
    name() = default;                                                       \
    name(Element first, Element second) : x(first), y(second) {}            \
  };                                                                        \
  inline name __hadd2(name a, name b) { return {a.x + b.x, a.y + b.y}; }    \
  inline name __hsub2(name a, name b) { return {a.x - b.x, a.y - b.y}; }    \
  inline name __hmul2(name a, name b) { return {a.x * b.x, a.y * b.y}; }    \
  inline name __hmax2(name a, name b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }  \
  inline name __hmin2(name a, name b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }  \
  inline name __hfma2(name a, name b, name c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
EMULATOR_PAIR(half, half2)
EMULATOR_PAIR(nv_bfloat16, nv_bfloat162)
#undef EMULATOR_PAIR
using __half2 = half2;
using __nv_bfloat162 = nv_bfloat162;

inline half2 make_half2(half x, half y) { return {x, y}; }
inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline half2 __float2half2_rn(float value) { return {half(value), half(value)}; }
inline half2 __floats2half2_rn(float x, float y) { return {half(x), half(y)}; }
inline half2 __float22half2_rn(float2 value) { return {half(value.x), half(value.y)}; }
inline float2 __half22float2(half2 value) { return {value.x, value.y}; }
inline nv_bfloat162 __float2bfloat162_rn(float value) { return {nv_bfloat16(value), nv_bfloat16(value)}; }
inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {nv_bfloat16(x), nv_bfloat16(y)}; }
inline nv_bfloat162 __float22bfloat162_rn(float2 value) { return {nv_bfloat16(value.x), nv_bfloat16(value.y)}; }
inline float2 __bfloat1622float2(nv_bfloat162 value) { return {value.x, value.y}; }
