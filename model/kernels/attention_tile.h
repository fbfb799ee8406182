/* A tile of keys and values, and rows of queries over it: the arithmetic of paged_attention.c.
 *
 * A tile's keys are converted and transposed into scratch once for all rows (a row: one query of one
 * head) that share them, its values are converted beside them, and a row goes over it by the online
 * softmax (Milakov and Gimelshein, 2018; FlashAttention: Dao et al., 2022).
 *
 * A row's arithmetic never depends on which other rows are computed beside it: sums run in the same
 * order in every instance of `product`, and keys hidden from a row change nothing of it (their
 * weights are exactly 0, the factor of a hidden tile exactly 1), computed or not.
 *
 * With AVX512_BF16 both products can be done in pairs of bfloat16 (accumulated in float32): twice
 * as many a cycle, exact in q, K and V where those were bfloat16, rounding the weights. */

#pragma once

#include <math.h>

#include "vectors.h"

#define ROWS 6       /* rows that a product holds in registers */
#define TILE 64      /* keys */
#define TILE_ROWS 96 /* rows that share a scratch: more where one query has more heads */
#define LINE 32      /* FP16 in a cache line */

/* What stays the same from call to call. */
struct shape {
    int64_t heads, kv_heads, head_dim, block_size;
    int64_t bf16;  /* q and out are bfloat16, else float32 */
    int64_t pairs; /* multiply pairs of bfloat16; only where `has_pairs` */
};

/* ---- products ---- */

/* c = a b, or c = factor c + a b where there is a factor for each row.
 *
 * a is [rows, steps], b [steps, columns * WIDTH], c [rows, columns * WIDTH]; the sum runs over the
 * steps in order, whatever the rows and columns. With `pairs` each float of a and b is a pair. */
INLINE void product(const int rows, const int columns, const int pairs, int64_t steps,
                    const float *a, int64_t a_stride, const float *b, int64_t b_stride, float *c,
                    int64_t c_stride, const float *factor) {
    vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < columns; v++)
            sum[r][v] = factor ? load(c + r * c_stride + v * WIDTH) * factor[r] : broadcast(0);
    for (int64_t s = 0; s < steps; s++) {
        vec right[COLUMNS];
#pragma GCC unroll 8
        for (int v = 0; v < columns; v++) right[v] = load(b + s * b_stride + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vec left = broadcast(a[r * a_stride + s]);
#pragma GCC unroll 8
            for (int v = 0; v < columns; v++)
                sum[r][v] = pairs ? add_pairs(sum[r][v], left, right[v])
                                  : sum[r][v] + left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < columns; v++) store(c + r * c_stride + v * WIDTH, sum[r][v]);
}

/* The same for any number of columns, `width`, a whole number of vectors; rows of b and c begin
 * `stride` apart. */
INLINE void wide_product(const int rows, const int pairs, int64_t width, int64_t stride,
                         int64_t steps, const float *a, int64_t a_stride, const float *b, float *c,
                         const float *factor) {
    int64_t at = 0;
    for (; at + COLUMNS * WIDTH <= width; at += COLUMNS * WIDTH)
        product(rows, COLUMNS, pairs, steps, a, a_stride, b + at, stride, c + at, stride, factor);
    for (; at < width; at += WIDTH)
        product(rows, 1, pairs, steps, a, a_stride, b + at, stride, c + at, stride, factor);
}

static void multiply(int rows, int pairs, int64_t width, int64_t stride, int64_t steps,
                     const float *a, int64_t a_stride, const float *b, float *c,
                     const float *factor) {
#define CASE(n) \
    case n: wide_product(n, 0, width, stride, steps, a, a_stride, b, c, factor); break; \
    case n + 8: wide_product(n, 1, width, stride, steps, a, a_stride, b, c, factor); break;
    switch (rows + 8 * (pairs && HAS_PAIRS)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

/* ---- scratch ---- */

INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Scratch of one thread; all sizes in floats. */
struct scratch {
    int64_t depth;  /* of q and the keys: head_dim filled up to vectors, or as many pairs */
    int64_t width;  /* of the values: head_dim filled up to vectors */
    float *keys;    /* [depth, TILE] */
    float *values;  /* [TILE, width], or [TILE / 2, width] pairs */
    float *weights; /* [ROWS, TILE] */
    float *q;       /* [rows, depth] */
    float *mixed;   /* [rows, width] */
    float *top;     /* [rows] */
    float *sum;     /* [rows, WIDTH], to be added up */
    uint16_t *zero; /* [kv_heads * head_dim], what stands for keys that are not there */
};

static int64_t rows_at_once(const struct shape *shape) {
    int64_t group = shape->heads / shape->kv_heads;
    return group > TILE_ROWS ? group : TILE_ROWS / group * group;
}

/* Lay the parts of a scratch out from `base` on; returns its size in floats. */
static int64_t lay_out(const struct shape *shape, float *base, struct scratch *s) {
    int64_t rows = rows_at_once(shape), at = 0;
    s->width = round_up(shape->head_dim, WIDTH);
    s->depth = shape->pairs ? round_up(shape->head_dim, 2 * WIDTH) / 2 : s->width;
#define PART(name, size) s->name = (void *)(base + at), at += round_up(size, 16)
    PART(keys, s->depth * TILE);
    PART(values, TILE * s->width);
    PART(weights, ROWS * TILE);
    PART(q, rows * s->depth);
    PART(mixed, rows * s->width);
    PART(top, rows);
    PART(sum, rows * WIDTH);
    PART(zero, (shape->kv_heads * shape->head_dim + 1) / 2);
#undef PART
    return at;
}

/* ---- packing ---- */

/* Where the keys and values of a tile stand, each of all KV heads; from `count` on, a whole number
 * of vectors, there are none. */
struct places {
    int64_t count;
    const uint16_t *keys[TILE], *values[TILE];
};

/* Ask for the cache line at d of what is next: keys lie too far apart for the CPU to guess. One at
 * a time between other work, as CPUs drop what is asked of them in bursts. */
INLINE void prefetch(const uint16_t *next, int64_t d) { __builtin_prefetch(next + d, 0, 2); }

/* The same for those of `next` that have no counterpart in this tile, as it has only `count`:
 * what is beside `keys` of it from `key` on falls to them. */
INLINE void prefetch_rest(const uint16_t *const *next, int64_t next_count, int64_t count,
                          int64_t key, int64_t keys, int64_t d) {
    for (int64_t from = key + count; from < next_count; from += count)
        for (int64_t i = 0; i < keys; i++) prefetch(next[from + i], d);
}

/* The keys of the head whose numbers begin at `head`. `whole`: they fill cache lines. */
INLINE void pack_keys(const int pairs, const int whole, const struct shape *shape,
                      struct scratch *s, int64_t head, const struct places *now,
                      const struct places *next) {
    const int64_t step = pairs ? 2 : 1;
    for (int64_t key = 0; key < now->count; key += WIDTH)
        for (int64_t d = 0; d < s->depth; d += WIDTH) {
            const int64_t at = head + d * step;
            const int64_t left = whole ? 2 * WIDTH : shape->head_dim - d * step;
            const int line = d * step % LINE == 0;
            vec square[WIDTH];
            if (line) prefetch_rest(next->keys, next->count, now->count, key, WIDTH, at);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) {
                const uint16_t *from = now->keys[key + i] + at;
                if (line) prefetch(next->keys[key + i], at);
#if HAS_PAIRS
                if (pairs) {
                    vec low = from_halves(from, left), high = broadcast(0);
                    if (left > WIDTH) high = from_halves(from + WIDTH, left - WIDTH);
                    square[i] = (vec)to_pairs(low, high);
                    continue;
                }
#endif
                square[i] = from_halves(from, left);
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; i++) store(s->keys + (d + i) * TILE + key, square[i]);
        }
}

INLINE void pack_values(const int pairs, const int whole, const struct shape *shape,
                        struct scratch *s, int64_t head, const struct places *now,
                        const struct places *next) {
    const int64_t step = pairs ? 2 : 1;
    for (int64_t key = 0; key < now->count; key += step)
        for (int64_t line = 0; line < s->width; line += LINE) {
            prefetch_rest(next->values, next->count, now->count, key, step, head + line);
            for (int i = 0; i < step; i++) prefetch(next->values[key + i], head + line);
#pragma GCC unroll 8
            for (int64_t d = line; d < line + LINE; d += WIDTH) {
                const int64_t left = whole ? WIDTH : shape->head_dim - d;
                if (left <= 0) break;
                vec x = from_halves(now->values[key] + head + d, left);
#if HAS_PAIRS
                if (pairs)
                    x = (vec)alternate(to_pairs(x, from_halves(now->values[key + 1] + head + d, left)));
#endif
                store(s->values + key / step * s->width + d, x);
            }
        }
}

static void pack(const struct shape *shape, struct scratch *s, int64_t head,
                 const struct places *now, const struct places *next) {
    const int whole = shape->head_dim % LINE == 0;
#define PACK(pairs, whole) \
    pack_keys(pairs, whole, shape, s, head, now, next); \
    pack_values(pairs, whole, shape, s, head, now, next)
    if (shape->pairs && HAS_PAIRS) {
        if (whole) { PACK(1, 1); } else { PACK(1, 0); }
    } else {
        if (whole) { PACK(0, 1); } else { PACK(0, 0); }
    }
#undef PACK
}

/* ---- weights ---- */

/* Scores of one row to weights (powers of the new maximum), in place; returns the factor that
 * brings what was summed before to the new maximum. Keys before `low` and from `high` on are
 * hidden. */
static float soften(float *row, int64_t low, int64_t high, float scale, int pairs, float *top,
                    float *sum) {
    for (int64_t key = 0; key < low && key < TILE; key++) row[key] = -INFINITY;
    for (int64_t key = high < 0 ? 0 : high; key < TILE; key++) row[key] = -INFINITY;
    vec parts[TILE / WIDTH], highest = broadcast(*top);
    for (int v = 0; v < TILE / WIDTH; v++) {
        parts[v] = load(row + v * WIDTH) * scale;
        highest = larger(highest, parts[v]);
    }
    float now = largest(highest);
    float factor = power_of_two(broadcast(*top - now))[0];
    vec added = broadcast(0);
    for (int v = 0; v < TILE / WIDTH; v++) {
        parts[v] = power_of_two(parts[v] - now);
        added = added + parts[v];
    }
    store(sum, load(sum) * factor + added);
    *top = now;
#if HAS_PAIRS
    if (pairs) {
        for (int v = 0; v < TILE / WIDTH; v += 2)
            store(row + v / 2 * WIDTH, (vec)to_pairs(parts[v], parts[v + 1]));
        return factor;
    }
#endif
    for (int v = 0; v < TILE / WIDTH; v++) store(row + v * WIDTH, parts[v]);
    return factor;
}
