/* Vectors of float32, bfloat16 or FP16 elements, read and written as floats. */

#pragma once

#include "vectors.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));

INLINE int64_t size_of(const int type) { return type == FLOAT32 ? 4 : 2; }

INLINE const void *element(const int type, const void *base, int64_t at) {
    return (const char *)base + at * size_of(type);
}

#if WIDTH == 16

INLINE halves to_halves(vec x) {
    return (halves)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#elif WIDTH == 8

INLINE halves to_halves(vec x) {
    return (halves)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#else

/* To the nearest, of two equally near the even one. Subnormals: a sum that has FP16's smallest
 * step as its own last place. */
INLINE uint16_t to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00; /* from 65,520 on */
    if (bits < 0x38800000) {                      /* below 2 ** -14 */
        float small;
        memcpy(&small, &bits, sizeof small);
        small += 0.5f;
        memcpy(&bits, &small, sizeof bits);
        return sign | (bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (bits - 0x38000000) >> 13;
}

INLINE halves to_halves(vec x) {
    halves y;
    for (int i = 0; i < WIDTH; i++) y[i] = to_half(x[i]);
    return y;
}

#endif

#if HAS_PAIRS

/* Makes zeros of numbers below 2 ** -126. */
INLINE halves to_bf16s(vec x) { return (halves)_mm512_cvtneps_pbh(x); }

#else

INLINE halves to_bf16s(vec x) {
    words bits = (words)x;
    words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    words nan = (words)(x != x);
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), halves);
}

#endif

INLINE vec from_bf16s(halves x) { return (vec)(__builtin_convertvector(x, words) << 16); }

INLINE vec take_vector(const int type, const void *from) {
    if (type == FLOAT16) return from_halves(from, WIDTH);
    if (type == FLOAT32) return load(from);
    halves x;
    memcpy(&x, from, sizeof x);
    return from_bf16s(x);
}

INLINE void give_vector(const int type, void *to, vec x) {
    if (type == FLOAT32) {
        store(to, x);
    } else {
        halves y = type == BFLOAT16 ? to_bf16s(x) : to_halves(x);
        memcpy(to, &y, sizeof y);
    }
}

/* What is left over from whole vectors; apart, to keep it out of the loops. */
static __attribute__((noinline)) vec take_some(int type, const void *from, int64_t count) {
    char some[sizeof(vec)] = {0};
    memcpy(some, from, count * size_of(type));
    if (type == FLOAT32) return take_vector(FLOAT32, some);
    return type == BFLOAT16 ? take_vector(BFLOAT16, some) : take_vector(FLOAT16, some);
}

static __attribute__((noinline)) void give_some(int type, void *to, vec x, int64_t count) {
    char some[sizeof(vec)];
    if (type == FLOAT32) give_vector(FLOAT32, some, x);
    else if (type == BFLOAT16) give_vector(BFLOAT16, some, x);
    else give_vector(FLOAT16, some, x);
    memcpy(to, some, count * size_of(type));
}

/* The first `count` elements, where a vector takes more, zeros behind them. */
INLINE vec take(const int type, const void *from, int64_t count) {
    return count < WIDTH ? take_some(type, from, count) : take_vector(type, from);
}

INLINE void give(const int type, void *to, vec x, int64_t count) {
    if (count < WIDTH) give_some(type, to, x, count);
    else give_vector(type, to, x);
}

/* x as it is once it is stored. */
INLINE vec rounded(const int type, vec x) {
    if (type == FLOAT32) return x;
    halves y = type == BFLOAT16 ? to_bf16s(x) : to_halves(x);
    return type == BFLOAT16 ? from_bf16s(y) : from_halves((const uint16_t *)&y, WIDTH);
}
