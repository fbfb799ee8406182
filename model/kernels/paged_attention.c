/* Causal attention straight from a paged FP16 cache, for one instruction set per build.
 *
 * Keys are taken in tiles of 64, counted from position 0. A tile's keys are converted and
 * transposed into scratch once for all rows (a row: one query of one head) that share them, its
 * values are converted beside them, and every row goes over the tiles from left to right by the
 * online softmax (Milakov and Gimelshein, 2018; FlashAttention: Dao et al., 2022). Blocks found by
 * a table are vLLM's (PagedAttention: Kwon et al., 2023).
 *
 * A row's arithmetic never depends on which other rows are computed beside it, nor on the thread
 * that does it: sums run in the same order in every instance of `product`, and a tile hidden from
 * a row changes nothing of it (its weights are exactly 0, its factor exactly 1). So a result is
 * bitwise a function of query, position and cache.
 *
 * With AVX512_BF16 both products can be done in pairs of bfloat16 (accumulated in float32): twice
 * as many a cycle, exact in q, K and V where those were bfloat16, rounding the weights. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define ROWS 6       /* rows that a product holds in registers */
#define TILE 64      /* keys */
#define TILE_ROWS 96 /* rows that share a converted tile: more where one query has more heads */
#define FLOOR -1e30f /* a running maximum before any key; finite, so that -inf - FLOOR is no NaN */

/* What stays the same from call to call. */
struct shape {
    int64_t heads, kv_heads, head_dim, block_size;
    int64_t bf16;  /* q and out are bfloat16, else float32 */
    int64_t pairs; /* multiply pairs of bfloat16; only where `has_pairs` */
};

/* One sequence's queries: rows first .. first + count - 1 of q, at positions from start on. */
struct span {
    int64_t first, count, start;
    int64_t table;     /* where its block ids begin */
    int64_t work_item; /* the first of its items of work */
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

/* The same for any number of columns, a whole number of vectors. */
INLINE void wide_product(const int rows, const int pairs, int64_t width, int64_t steps,
                         const float *a, int64_t a_stride, const float *b, float *c,
                         const float *factor) {
    int64_t at = 0;
    for (; at + COLUMNS * WIDTH <= width; at += COLUMNS * WIDTH)
        product(rows, COLUMNS, pairs, steps, a, a_stride, b + at, width, c + at, width, factor);
    for (; at < width; at += WIDTH)
        product(rows, 1, pairs, steps, a, a_stride, b + at, width, c + at, width, factor);
}

static void multiply(int rows, int pairs, int64_t width, int64_t steps, const float *a,
                     int64_t a_stride, const float *b, float *c, const float *factor) {
#define CASE(n) \
    case n: wide_product(n, 0, width, steps, a, a_stride, b, c, factor); break; \
    case n + 8: wide_product(n, 1, width, steps, a, a_stride, b, c, factor); break;
    switch (rows + 8 * (pairs && HAS_PAIRS)) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

/* ---- one tile ---- */

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
    uint16_t *zero; /* [head_dim], what stands for a key that is not there */
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
    PART(zero, (shape->head_dim + 1) / 2);
#undef PART
    return at;
}

/* Ask for the cache line at d of a row of the next tile: rows lie too far apart for the CPU to
 * guess. One line at a time between other work, as CPUs drop what is asked of them in bursts. */
INLINE void prefetch(const uint16_t *row, int64_t d) {
    if (d % 32 == 0) __builtin_prefetch(row + d, 0, 2);
}

static void pack_keys(const struct shape *shape, struct scratch *s, const uint16_t *const *rows,
                      const uint16_t *const *next) {
    const int64_t step = shape->pairs ? 2 : 1;
    for (int64_t key = 0; key < TILE; key += WIDTH)
        for (int64_t d = 0; d < s->depth; d += WIDTH) {
            vec square[WIDTH];
            for (int i = 0; i < WIDTH; i++) {
                const uint16_t *from = rows[key + i] + d * step;
                int64_t left = shape->head_dim - d * step;
                prefetch(next[key + i], d * step);
#if HAS_PAIRS
                if (shape->pairs) {
                    vec low = from_halves(from, left), high = broadcast(0);
                    if (left > WIDTH) high = from_halves(from + WIDTH, left - WIDTH);
                    square[i] = (vec)to_pairs(low, high);
                    continue;
                }
#endif
                square[i] = from_halves(from, left);
            }
            transpose(square);
            for (int i = 0; i < WIDTH; i++) store(s->keys + (d + i) * TILE + key, square[i]);
        }
}

static void pack_values(const struct shape *shape, struct scratch *s,
                        const uint16_t *const *rows, const uint16_t *const *next) {
#if HAS_PAIRS
    if (shape->pairs) {
        const __m512i order = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
            4, 19, 3, 18, 2, 17, 1, 16, 0);
        for (int64_t key = 0; key < TILE; key += 2)
            for (int64_t d = 0; d < shape->head_dim; d += WIDTH) {
                int64_t left = shape->head_dim - d;
                __m512i both = to_pairs(from_halves(rows[key] + d, left),
                                        from_halves(rows[key + 1] + d, left));
                store(s->values + key / 2 * s->width + d,
                      (vec)_mm512_permutexvar_epi16(order, both));
                prefetch(next[key], d);
                prefetch(next[key + 1], d - WIDTH);
            }
        return;
    }
#endif
    for (int64_t key = 0; key < TILE; key++)
        for (int64_t d = 0; d < shape->head_dim; d += WIDTH) {
            store(s->values + key * s->width + d,
                  from_halves(rows[key] + d, shape->head_dim - d));
            prefetch(next[key], d);
        }
}

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

/* ---- one item of work: some queries of the heads that share one KV head ---- */

struct call {
    struct shape shape;
    const void *q;
    void *out;
    const uint16_t *pool;
    const int64_t *tables;
    int64_t window; /* 0: none */
};

static int64_t row_of(const struct call *call, const struct span *span, int64_t kv_head,
                      int64_t query, int64_t in_group) {
    int64_t group = call->shape.heads / call->shape.kv_heads;
    return ((span->first + query) * call->shape.heads + kv_head * group + in_group) *
           call->shape.head_dim;
}

static void take_query(const struct call *call, const struct scratch *s, int64_t at, float *to) {
    const int64_t head_dim = call->shape.head_dim;
    const uint16_t *narrow = (const uint16_t *)call->q + at;
    const float *wide = (const float *)call->q + at;
    memset(to, 0, s->depth * sizeof *to);
    if (call->shape.pairs && call->shape.bf16) {
        memcpy(to, narrow, head_dim * sizeof *narrow);
    } else if (call->shape.pairs) {
        for (int64_t d = 0; d < head_dim; d++) ((uint16_t *)to)[d] = to_bf16(wide[d]);
    } else if (call->shape.bf16) {
        for (int64_t d = 0; d < head_dim; d++) to[d] = from_bf16(narrow[d]);
    } else {
        memcpy(to, wide, head_dim * sizeof *wide);
    }
}

/* The sign of a zero may tell which hidden tiles were computed: adding +0 makes all zeros +0. */
static void give_result(const struct call *call, int64_t at, const float *mixed, const float *sum) {
    const float weight = total(load(sum));
    for (int64_t d = 0; d < call->shape.head_dim; d++) {
        float x = mixed[d] / weight + 0.0f;
        if (call->shape.bf16)
            ((uint16_t *)call->out)[at + d] = to_bf16(x);
        else
            ((float *)call->out)[at + d] = x;
    }
}

/* Where a tile's keys stand in the pool; zeros stand for those at `end` and beyond, as a block
 * holds another sequence's leftovers there, which may not even be finite. */
static void find_rows(const struct call *call, const struct span *span, const struct scratch *s,
                      int64_t kv_head, int64_t tile, const uint16_t **keys,
                      const uint16_t **values) {
    const struct shape *shape = &call->shape;
    const int64_t stride = shape->kv_heads * shape->head_dim;
    const int64_t plane = shape->block_size * stride; /* all K, or all V, of a block */
    const int64_t end = span->start + span->count;
    const int64_t *table = call->tables + span->table;
    const int64_t size = shape->block_size;
    int64_t i = 0, position = tile * TILE;
    while (i < TILE && position < end) { /* block by block */
        int64_t offset = position % size, run = size - offset;
        const uint16_t *key = call->pool + table[position / size] * 2 * plane + offset * stride +
                              kv_head * shape->head_dim;
        if (run > TILE - i) run = TILE - i;
        if (run > end - position) run = end - position;
        for (int64_t stop = i + run; i < stop; i++, key += stride)
            keys[i] = key, values[i] = key + plane;
        position += run;
    }
    for (; i < TILE; i++) keys[i] = values[i] = s->zero;
}

/* Queries `begin` .. `stop` - 1 of a span, for the heads of one KV head. */
static void attend(const struct call *call, const struct span *span, int64_t kv_head,
                   int64_t begin, int64_t stop, struct scratch *s) {
    const struct shape *shape = &call->shape;
    const int pairs = shape->pairs != 0;
    const int64_t group = shape->heads / shape->kv_heads, rows = (stop - begin) * group;
    const float scale = 1.4426950408889634 / sqrt((double)shape->head_dim); /* log2(e) in it */
    const int64_t steps = pairs ? (shape->head_dim + 1) / 2 : shape->head_dim;
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row_of(call, span, kv_head, begin + row / group, row % group);
        take_query(call, s, at, s->q + row * s->depth);
        s->top[row] = FLOOR;
    }
    memset(s->sum, 0, rows * WIDTH * sizeof *s->sum);
    memset(s->mixed, 0, rows * s->width * sizeof *s->mixed);
    int64_t low = call->window ? span->start + begin - call->window + 1 : 0;
    int64_t tile = low > 0 ? low / TILE : 0;
    const uint16_t *keys[2][TILE], *values[2][TILE];
    find_rows(call, span, s, kv_head, tile, keys[tile % 2], values[tile % 2]);
    for (; tile * TILE < span->start + stop; tile++) {
        const int now = tile % 2, next = !now;
        find_rows(call, span, s, kv_head, tile + 1, keys[next], values[next]);
        pack_keys(shape, s, keys[now], keys[next]);
        pack_values(shape, s, values[now], values[next]);
        for (int64_t row = 0; row < rows; row += ROWS) {
            const int some = rows - row < ROWS ? rows - row : ROWS;
            float factor[ROWS];
            multiply(some, pairs, TILE, steps, s->q + row * s->depth, s->depth, s->keys,
                     s->weights, NULL);
            for (int r = 0; r < some; r++) {
                int64_t last = span->start + begin + (row + r) / group - tile * TILE;
                int64_t first = call->window ? last - call->window + 1 : 0;
                factor[r] = soften(s->weights + r * TILE, first, last + 1, scale, pairs,
                                   s->top + row + r, s->sum + (row + r) * WIDTH);
            }
            multiply(some, pairs, s->width, pairs ? TILE / 2 : TILE, s->weights, TILE, s->values,
                     s->mixed + row * s->width, factor);
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row_of(call, span, kv_head, begin + row / group, row % group);
        give_result(call, at, s->mixed + row * s->width, s->sum + row * WIDTH);
    }
}

/* ---- what is called from outside ---- */

int64_t has_pairs(void) { return HAS_PAIRS; }

/* Queries of one span that are one item of work, for each KV head. */
int64_t queries_at_once(const struct shape *shape) {
    return rows_at_once(shape) / (shape->heads / shape->kv_heads);
}

/* Bytes of scratch that each thread needs, a multiple of 64. */
int64_t scratch_bytes(const struct shape *shape) {
    struct scratch s;
    return lay_out(shape, NULL, &s) * sizeof(float);
}

/* q and out [n, heads, head_dim]; pool one layer of the cache, FP16 [blocks, 2, block_size,
 * kv_heads, head_dim]; scratch 64-byte aligned. Span i has the items of work from
 * spans[i].work_item up to that of span i + 1, which is only a mark behind the last. */
void paged_attention(const struct shape *shape, const void *q, void *out, const void *pool,
                     const struct span *spans, int64_t count, const int64_t *tables,
                     int64_t window, int64_t threads, void *scratch) {
    const struct call call = {*shape, q, out, pool, tables, window};
    const int64_t items = spans[count].work_item, at_once = queries_at_once(shape);
    const int64_t bytes = scratch_bytes(shape);
    /* From the last item to the first: of a long prompt the last queries see the most keys. */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t item = items - 1; item >= 0; item--) {
        int64_t thread = 0, low = 0, high = count;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        while (high - low > 1) { /* spans[low].work_item <= item < spans[high].work_item */
            int64_t middle = (low + high) / 2;
            if (spans[middle].work_item <= item) low = middle;
            else high = middle;
        }
        const struct span *span = spans + low;
        struct scratch s;
        lay_out(shape, (float *)((char *)scratch + thread * bytes), &s);
        memset(s.zero, 0, shape->head_dim * sizeof *s.zero);
        int64_t nth = item - span->work_item, begin = nth / shape->kv_heads * at_once;
        int64_t stop = begin + at_once < span->count ? begin + at_once : span->count;
        attend(&call, span, nth % shape->kv_heads, begin, stop, &s);
    }
}
