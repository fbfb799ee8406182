/* What a transformer does to one token at a time, beside its matrices: RMS norms and residual sums,
 * rope, the gated activation, K and V on their way into the paged FP16 cache.
 *
 * A token's result is bitwise a function of that token: its row is computed by one thread, in the
 * same order wherever it stands. Arithmetic is float32, whatever the elements. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "elements.h"

/* What stays the same through one step. */
struct step {
    int64_t type; /* of all elements but the cache's, as in elements.h */
    int64_t hidden, inner, heads, kv_heads, head_dim, block_size;
    double eps;
    const float *cos, *sin; /* [positions, head_dim]; of a sine's two halves the first is negated */
    int64_t tokens, threads;
    const int64_t *positions; /* [tokens] */
    const int64_t *rows;      /* [tokens], where its K goes; V stands block_size rows on */
};

/* A loop over tokens, by the threads of the step. */
#define EACH_TOKEN(step, token) \
    _Pragma("omp parallel for schedule(static) num_threads((step)->threads)") \
    for (int64_t token = 0; token < (step)->tokens; token++)

/* A case for each type of element, so that each is compiled apart. */
#define BY_TYPE(step, function, ...) \
    switch ((step)->type) { \
    case FLOAT32: function(FLOAT32, __VA_ARGS__); break; \
    case BFLOAT16: function(BFLOAT16, __VA_ARGS__); break; \
    case FLOAT16: function(FLOAT16, __VA_ARGS__); break; \
    }

/* 1 / sqrt(mean of squares + eps), of `squares` added up in a vector */
INLINE vec norm_factor(vec squares, int64_t width, double eps) {
    return broadcast(1 / sqrtf(total(squares) / (float)width + (float)eps));
}

/* ---- norms ---- */

/* x = x + y where there is a y; out = norm(x) * weight. */
INLINE void norm_row(const int type, int64_t width, double eps, void *x, const void *y,
                     const void *weight, void *out) {
    vec squares = broadcast(0);
    for (int64_t d = 0; d < width; d += WIDTH) {
        void *at = (void *)element(type, x, d);
        vec value = take(type, at, width - d);
        if (y) {
            value = rounded(type, value + take(type, element(type, y, d), width - d));
            give(type, at, value, width - d);
        }
        squares = squares + value * value;
    }
    const vec factor = norm_factor(squares, width, eps);
    for (int64_t d = 0; d < width; d += WIDTH) {
        vec value = take(type, element(type, x, d), width - d) * factor;
        value = value * take(type, element(type, weight, d), width - d);
        give(type, (void *)element(type, out, d), value, width - d);
    }
}

/* x = x + y, out = norm(x) * weight; x, y and out [tokens, hidden], weight [hidden]. y may be NULL:
 * nothing is added then. */
void add_norm(const struct step *step, void *x, const void *y, const void *weight, void *out) {
    const int64_t width = step->hidden, bytes = width * size_of(step->type);
    EACH_TOKEN(step, token) {
        const int64_t at = token * bytes;
        BY_TYPE(step, norm_row, width, step->eps, (char *)x + at, y ? (char *)y + at : NULL, weight,
                (char *)out + at)
    }
}

/* ---- the gated activation ---- */

/* x * sigmoid(x); the power is kept finite. */
INLINE vec silu(vec x) {
    return x / (1 + power_of_two(-larger(broadcast(-127), x * 1.44269504f)));
}

INLINE void gate_row(const int type, int64_t width, const void *gate_up, void *out) {
    const void *up = element(type, gate_up, width);
    for (int64_t d = 0; d < width; d += WIDTH) {
        vec value = silu(take(type, element(type, gate_up, d), width - d));
        value = value * take(type, element(type, up, d), width - d);
        give(type, (void *)element(type, out, d), value, width - d);
    }
}

/* silu(gate) * up: gate_up [tokens, 2 * inner] -> out [tokens, inner] */
void gate(const struct step *step, const void *gate_up, void *out) {
    const int64_t width = step->inner, bytes = width * size_of(step->type);
    EACH_TOKEN(step, token) {
        BY_TYPE(step, gate_row, width, (char *)gate_up + 2 * token * bytes,
                (char *)out + token * bytes)
    }
}

/* ---- heads ---- */

/* The larger magnitude, as bits: the bits of a NaN are above all others. */
INLINE ints larger_bits(ints peak, vec x) {
    const ints bits = (ints)x & INT32_MAX;
    const ints first = peak > bits;
    return (first & peak) | (~first & bits);
}

/* `count` elements of a key or value, on their way into the cache. */
INLINE void keep(vec x, int64_t count, uint16_t *to, ints *peak) {
    *peak = larger_bits(*peak, x);
    give(FLOAT16, to, x, count);
}

/* A query's or key's head: its norm where there is a weight, then rope; elements i and
 * i + head_dim / 2 are a pair. A key goes to `cache`, a query to `q`. */
INLINE void turn_head(const int type, const struct step *step, int64_t position, const void *head,
                      const void *weight, void *q, uint16_t *cache, ints *peak) {
    const int64_t width = step->head_dim, half = width / 2;
    const float *cos = step->cos + position * width, *sin = step->sin + position * width + half;
    vec factor = broadcast(1);
    if (weight) {
        vec squares = broadcast(0);
        for (int64_t d = 0; d < width; d += WIDTH) {
            vec x = take(type, element(type, head, d), width - d);
            squares = squares + x * x;
        }
        factor = norm_factor(squares, width, step->eps);
    }
    for (int64_t d = 0; d < half; d += WIDTH) {
        const int64_t count = half - d;
        vec left = take(type, element(type, head, d), count);
        vec right = take(type, element(type, head, half + d), count);
        if (weight) {
            left = left * factor * take(type, element(type, weight, d), count);
            right = right * factor * take(type, element(type, weight, half + d), count);
        }
        const vec c = take(FLOAT32, cos + d, count), s = take(FLOAT32, sin + d, count);
        const vec turned = left * c - right * s, other = right * c + left * s;
        if (cache) {
            keep(rounded(type, turned), count, cache + d, peak);
            keep(rounded(type, other), count, cache + half + d, peak);
        } else {
            give(type, (void *)element(type, q, d), turned, count);
            give(type, (void *)element(type, q, half + d), other, count);
        }
    }
}

/* One token: see `place`. */
INLINE void place_row(const int type, const struct step *step, int64_t token, const void *qkv,
                      const void *weights, uint16_t *pool, void *q, float *peak) {
    const int64_t width = step->head_dim, heads = step->heads, turned = heads + step->kv_heads;
    const int64_t row = step->kv_heads * width; /* of the pool */
    uint16_t *keys = pool + step->rows[token] * row, *values = keys + step->block_size * row;
    const void *from = element(type, qkv, token * (turned * width + row));
    void *to = (void *)element(type, q, token * heads * width);
    ints bits = {0};
    for (int64_t h = 0; h < turned; h++)
        turn_head(type, step, step->positions[token], element(type, from, h * width),
                  weights ? element(type, weights, h * width) : NULL,
                  h < heads ? (void *)element(type, to, h * width) : NULL,
                  h < heads ? NULL : keys + (h - heads) * width, &bits);
    for (int64_t d = 0; d < row; d += WIDTH)
        keep(take(type, element(type, from, turned * width + d), row - d), row - d, values + d,
             &bits);
    int32_t top = bits[0];
    for (int i = 1; i < WIDTH; i++) top = bits[i] > top ? bits[i] : top;
    memcpy(peak, &top, sizeof top);
}

/* qkv [tokens, heads + 2 * kv_heads, head_dim]: queries, normed and rotated, to q [tokens, heads,
 * head_dim]; keys, normed and rotated, and values, rounded to FP16, into one layer of the pool
 * [blocks, 2, block_size, kv_heads, head_dim]; the largest magnitude among a token's K and V before
 * that, or NaN, to peaks [tokens]. weights [heads + kv_heads, head_dim] or NULL: no norm. */
void place(const struct step *step, const void *qkv, const void *weights, void *pool, void *q,
           float *peaks) {
    EACH_TOKEN(step, token) {
        BY_TYPE(step, place_row, step, token, qkv, weights, pool, q, peaks + token)
    }
}
