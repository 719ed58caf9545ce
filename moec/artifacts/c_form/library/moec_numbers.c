/* Numbers of one type as numbers of another, as numpy converts them. */

#include "moec_internal.h"

#include <string.h>

static float of_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction / (float)(1 << 24);
    return sign ? -small : small;
}

static uint16_t to_half(float number) {
    uint32_t bits = bits_of(number), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) { /* not a number: keep the leading bits, and at least one */
        uint32_t fraction = rest >> 13 & 1023;
        return (uint16_t)(sign | 0x7c00 | (fraction ? fraction : 1));
    }
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* beyond the largest half, after rounding */
    if (rest < 0x38800000) { /* below the smallest normal half: adding 0.5 rounds to its multiples of 2^-24 */
        float magnitude = of_bits(rest) + 0.5f;
        return (uint16_t)(sign | (bits_of(magnitude) - bits_of(0.5f)));
    }
    uint32_t rounded = rest - (112u << 23) + 0xfff + (rest >> 13 & 1);
    return (uint16_t)(sign | rounded >> 13);
}

static uint16_t to_bfloat(float number) {
    uint32_t bits = bits_of(number);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16 & 0x8000) | 0x7fc0);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float load(moec_type type, const void *data, size_t at) {
    if (type == MOEC_FLOAT16) return from_half(((const uint16_t *)data)[at]);
    if (type == MOEC_BFLOAT16) return of_bits((uint32_t)((const uint16_t *)data)[at] << 16);
    return type == MOEC_FLOAT64 ? (float)((const double *)data)[at] : ((const float *)data)[at];
}

static void store(moec_type type, void *data, size_t at, float number) {
    if (type == MOEC_FLOAT16)
        ((uint16_t *)data)[at] = to_half(number);
    else if (type == MOEC_BFLOAT16)
        ((uint16_t *)data)[at] = to_bfloat(number);
    else if (type == MOEC_FLOAT64)
        ((double *)data)[at] = number;
    else
        ((float *)data)[at] = number;
}

void moec_convert(moec_type to_type, void *to, moec_type from_type, const void *from, size_t count) {
    if (to_type == from_type) {
        memcpy(to, from, count * moec_type_size(to_type));
        return;
    }
    for (size_t at = 0; at < count; at++) store(to_type, to, at, load(from_type, from, at));
}

void moec_fill(moec_type type, void *data, size_t count, int64_t first, int64_t step) {
    for (size_t at = 0; at < count; at++) {
        int64_t number = first + (int64_t)at * step;
        size_t size = moec_type_size(type);
        if (type >= MOEC_FLOAT16)
            store(type, data, at, (float)number);
        else
            memcpy((char *)data + at * size, &number, size); /* both processors store the low bytes first */
    }
}
