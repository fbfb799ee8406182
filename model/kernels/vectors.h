/* Vectors of floats for the instruction set that the compiler is told, and FP16 and bfloat16.
 *
 * Arithmetic on `vec` is the compiler's (GCC's vector extensions); the rest is here. */

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16  /* floats in a vector */
#define COLUMNS 4 /* vectors of a row that a product holds in registers, beside ROWS of them */
#elif defined(__AVX2__)
#define WIDTH 8
#define COLUMNS 2
#else
#define WIDTH 4
#define COLUMNS 2
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));

INLINE vec load(const float *from) {
    vec x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, vec x) { memcpy(to, &x, sizeof x); }

#if WIDTH == 16

INLINE vec broadcast(float x) { return _mm512_set1_ps(x); }
/* The second where either is NaN, in every instruction set. */
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE float largest(vec x) { return _mm512_reduce_max_ps(x); }
INLINE float total(vec x) { return _mm512_reduce_add_ps(x); }

INLINE vec from_halves(const uint16_t *from, int64_t count) {
    /* Not by a mask of ones, which gcc does not see through. */
    if (count >= WIDTH) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << count) - 1, from));
}

INLINE void transpose(vec r[WIDTH]) {
    vec t[WIDTH];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int c = 0; c < 2; c++) {
            __m512d a = (__m512d)t[i + c], b = (__m512d)t[i + c + 2];
            r[i + 2 * c] = (vec)_mm512_unpacklo_pd(a, b);
            r[i + 2 * c + 1] = (vec)_mm512_unpackhi_pd(a, b);
        }
    /* Now lane l of r[i + c] holds column 4 l + c of rows i .. i + 3. */
    for (int c = 0; c < 4; c++) {
        vec even0 = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88);
        vec even1 = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88);
        vec odd0 = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xdd);
        vec odd1 = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xdd);
        t[c] = _mm512_shuffle_f32x4(even0, even1, 0x88);
        t[c + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
        t[c + 8] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
        t[c + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

#elif WIDTH == 8

INLINE vec broadcast(float x) { return _mm256_set1_ps(x); }
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }

INLINE vec from_halves(const uint16_t *from, int64_t count) {
    uint16_t some[WIDTH] = {0};
    if (count < WIDTH) from = memcpy(some, from, count * sizeof *some);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

INLINE void transpose(vec r[WIDTH]) {
    vec t[WIDTH];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int c = 0; c < 2; c++) {
            r[i + 2 * c] = _mm256_shuffle_ps(t[i + c], t[i + c + 2], 0x44);
            r[i + 2 * c + 1] = _mm256_shuffle_ps(t[i + c], t[i + c + 2], 0xee);
        }
    for (int c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(r[c], r[c + 4], 0x20);
        t[c + 4] = _mm256_permute2f128_ps(r[c], r[c + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

#else

INLINE vec broadcast(float x) { return (vec){x, x, x, x}; }

INLINE vec larger(vec a, vec b) {
    ints first = a > b;
    return (vec)((first & (ints)a) | (~first & (ints)b));
}

/* FP16 by integer arithmetic: shifted into place, the exponent corrected by a product, which also
 * makes FP16's subnormals right. */
INLINE float from_half(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, sizeof x);
    x *= 0x1p112f;
    memcpy(&bits, &x, sizeof x);
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000; /* infinity or NaN */
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE vec from_halves(const uint16_t *from, int64_t count) {
    vec x = broadcast(0);
    for (int64_t i = 0; i < WIDTH && i < count; i++) x[i] = from_half(from[i]);
    return x;
}

INLINE void transpose(vec r[WIDTH]) {
    for (int i = 0; i < WIDTH; i++)
        for (int j = 0; j < i; j++) {
            float x = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = x;
        }
}

#endif
#if WIDTH != 16

INLINE float largest(vec x) {
    float top = x[0];
    for (int i = 1; i < WIDTH; i++) top = x[i] > top ? x[i] : top;
    return top;
}

INLINE float total(vec x) {
    float sum = x[0];
    for (int i = 1; i < WIDTH; i++) sum += x[i];
    return sum;
}

#endif

/* 2 ** x for x <= 127; exactly 0 from -127 down, exactly 1 at 0, NaN for NaN. Polynomial: Cephes
 * exp2f. */
INLINE vec power_of_two(vec x) {
    x = larger(broadcast(-127), x);
    vec shifted = x + 0x1.8p23f; /* the nearest integer stands in the lowest bits */
    vec r = x - (shifted - 0x1.8p23f);
    vec y = broadcast(1.535336188319500e-4f);
    y = y * r + 1.339887440266574e-3f;
    y = y * r + 9.618437357674640e-3f;
    y = y * r + 5.550332471162809e-2f;
    y = y * r + 2.402264791363012e-1f;
    y = y * r + 6.931472028550421e-1f;
    y = y * r + 1.0f;
    return y * (vec)(((ints)shifted + 127) << 23);
}

INLINE float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    if (x != x) return 0x7fc0;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

#ifdef __AVX512BF16__
#define HAS_PAIRS 1

/* Two vectors as bfloat16, one after the other. */
INLINE __m512i to_pairs(vec low, vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* What lies in one half and what lies in the other by turns. */
INLINE __m512i alternate(__m512i x) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
        3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, x);
}

INLINE vec add_pairs(vec sum, vec a, vec b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

#else
#define HAS_PAIRS 0
INLINE vec add_pairs(vec sum, vec a, vec b) { return sum + a * b; } /* never called */
#endif
