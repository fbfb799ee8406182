/* Causal attention straight from a paged FP16 cache, for one instruction set per build.
 *
 * Keys are taken in tiles of 64, counted from position 0, and every row (one query of one head) goes
 * over them from left to right (attention_tile.h). Blocks found by a table are vLLM's
 * (PagedAttention: Kwon et al., 2023).
 *
 * A row's arithmetic depends neither on other rows nor on the thread that does it nor on how work is
 * cut, so a result is bitwise a function of query, position and cache.
 *
 * Where a sequence has few queries, reading the cache is most of the work: then one item of work
 * takes all KV heads of a tile, which lie side by side, and while one tile is computed memory is
 * asked for the next, of the next item too. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "attention_tile.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define FLOOR -1e30f /* a running maximum before any key; finite, so that -inf - FLOOR is no NaN */

/* One sequence's queries: rows first .. first + count - 1 of q, at positions from start on. */
struct span {
    int64_t first, count, start;
    int64_t heads;     /* KV heads that one item of work takes: 1 or all */
    int64_t table;     /* where its block ids begin */
    int64_t work_item; /* the first of its items of work */
};

struct call {
    struct shape shape;
    const void *q;
    void *out;
    const uint16_t *pool;
    const struct span *spans;
    int64_t count; /* of spans */
    const int64_t *tables;
    int64_t window; /* 0: none */
};

/* One item of work: `queries` of a span from its query `begin` on, at positions from `start` on, for
 * the heads of `heads` KV heads from `head` on. Its rows: by KV head, then query, then head. */
struct item {
    const struct span *span;
    int64_t head, heads, begin, queries, start;
};

static int64_t group_of(const struct shape *shape) { return shape->heads / shape->kv_heads; }

/* ---- rows ---- */

/* Where a row of an item stands in q and out. */
static int64_t place_of(const struct shape *shape, const struct item *item, int64_t row) {
    const int64_t group = group_of(shape);
    const int64_t query = item->span->first + item->begin + row / group % item->queries;
    const int64_t kv_head = item->head + row / group / item->queries;
    return (query * shape->heads + kv_head * group + row % group) * shape->head_dim;
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

/* ---- an item of work ---- */

static int64_t queries_of_one_head(const struct shape *shape) {
    return rows_at_once(shape) / group_of(shape);
}

static struct item find_item(const struct call *call, int64_t nth) {
    int64_t low = 0, high = call->count;
    while (high - low > 1) { /* spans[low].work_item <= nth < spans[high].work_item */
        int64_t middle = (low + high) / 2;
        if (call->spans[middle].work_item <= nth) low = middle;
        else high = middle;
    }
    const struct span *span = call->spans + low;
    const int64_t at_once = queries_of_one_head(&call->shape);
    const int64_t parts = call->shape.kv_heads / span->heads; /* of a query */
    nth -= span->work_item;
    const int64_t begin = nth / parts * at_once, left = span->count - begin;
    return (struct item){span, nth % parts * span->heads, span->heads, begin,
                         left < at_once ? left : at_once, span->start + begin};
}

static int64_t first_tile(const struct call *call, const struct item *item) {
    int64_t low = call->window ? item->start - call->window + 1 : 0;
    return low > 0 ? low / TILE : 0;
}

static void nowhere(const struct scratch *s, struct places *places, int64_t from) {
    for (int64_t i = from; i < TILE; i++) places->keys[i] = places->values[i] = s->zero;
}

/* Where a tile's keys stand in the pool; zeros stand for those that no query of the item sees, as a
 * block holds another sequence's leftovers there, which may not even be finite. */
static void find_tile(const struct call *call, const struct item *item, const struct scratch *s,
                      int64_t tile, struct places *places) {
    const struct shape *shape = &call->shape;
    const int64_t stride = shape->kv_heads * shape->head_dim;
    const int64_t plane = shape->block_size * stride; /* all K, or all V, of a block */
    const int64_t end = item->start + item->queries;
    const int64_t *table = call->tables + item->span->table;
    const int64_t size = shape->block_size;
    int64_t i = 0, position = tile * TILE;
    while (i < TILE && position < end) { /* block by block */
        int64_t offset = position % size, run = size - offset;
        const uint16_t *key = call->pool + table[position / size] * 2 * plane + offset * stride;
        if (run > TILE - i) run = TILE - i;
        if (run > end - position) run = end - position;
        for (int64_t stop = i + run; i < stop; i++, key += stride)
            places->keys[i] = key, places->values[i] = key + plane;
        position += run;
    }
    places->count = round_up(i, WIDTH);
    nowhere(s, places, i);
}

/* The rows of the item's `nth` KV head over the tile in scratch, `count` keys of it. */
static void add_tile(const struct call *call, const struct item *item, int64_t nth, int64_t tile,
                     int64_t count, struct scratch *s) {
    const struct shape *shape = &call->shape;
    const int pairs = shape->pairs != 0;
    const int64_t group = group_of(shape), rows = item->queries * group;
    const float scale = 1.4426950408889634 / sqrt((double)shape->head_dim); /* log2(e) in it */
    const int64_t steps = pairs ? (shape->head_dim + 1) / 2 : shape->head_dim;
    for (int64_t row = 0; row < rows; row += ROWS) {
        const int some = rows - row < ROWS ? rows - row : ROWS;
        const int64_t at = nth * rows + row;
        float factor[ROWS];
        multiply(some, pairs, count, TILE, steps, s->q + at * s->depth, s->depth, s->keys,
                 s->weights, NULL);
        for (int r = 0; r < some; r++) {
            int64_t last = item->start + (row + r) / group - tile * TILE;
            int64_t first = call->window ? last - call->window + 1 : 0;
            factor[r] = soften(s->weights + r * TILE, first, last + 1, scale, pairs,
                               s->top + at + r, s->sum + (at + r) * WIDTH);
        }
        multiply(some, pairs, s->width, s->width, pairs ? count / 2 : count, s->weights, TILE,
                 s->values, s->mixed + at * s->width, factor);
    }
}

/* `after`: what the thread is to do next, perhaps; no span where there is nothing. */
static void attend(const struct call *call, const struct item *item, const struct item *after,
                   struct scratch *s) {
    const struct shape *shape = &call->shape;
    const int64_t rows = item->heads * item->queries * group_of(shape);
    for (int64_t row = 0; row < rows; row++) {
        take_query(call, s, place_of(shape, item, row), s->q + row * s->depth);
        s->top[row] = FLOOR;
    }
    memset(s->sum, 0, rows * WIDTH * sizeof *s->sum);
    memset(s->mixed, 0, rows * s->width * sizeof *s->mixed);
    const int64_t end = (item->start + item->queries + TILE - 1) / TILE;
    struct places found[2];
    int64_t tile = first_tile(call, item);
    find_tile(call, item, s, tile, &found[tile % 2]);
    for (; tile < end; tile++) {
        struct places *now = &found[tile % 2], *next = &found[(tile + 1) % 2];
        if (tile + 1 < end) find_tile(call, item, s, tile + 1, next);
        else if (after->span) find_tile(call, after, s, first_tile(call, after), next);
        else next->count = 0, nowhere(s, next, 0);
        for (int64_t nth = 0; nth < item->heads; nth++) {
            pack(shape, s, (item->head + nth) * shape->head_dim, now, next);
            add_tile(call, item, nth, tile, now->count, s);
        }
    }
    for (int64_t row = 0; row < rows; row++)
        give_result(call, place_of(shape, item, row), s->mixed + row * s->width,
                    s->sum + row * WIDTH);
}

/* ---- what is called from outside ---- */

int64_t has_pairs(void) { return HAS_PAIRS; }

/* Queries of one span that are one item of work, of one KV head. A span that has this many over all
 * its KV heads, or fewer, may be one item in all (`span.heads`). */
int64_t queries_at_once(const struct shape *shape) { return queries_of_one_head(shape); }

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
    const struct call call = {*shape, q, out, pool, spans, count, tables, window};
    const int64_t bytes = scratch_bytes(shape);
    /* From the last item to the first: of a long prompt the last queries see the most keys. */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t nth = spans[count].work_item - 1; nth >= 0; nth--) {
        int64_t thread = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        struct scratch s;
        lay_out(shape, (float *)((char *)scratch + thread * bytes), &s);
        memset(s.zero, 0, shape->kv_heads * shape->head_dim * sizeof *s.zero);
        const struct item item = find_item(&call, nth);
        struct item after = {0};
        if (nth >= threads) after = find_item(&call, nth - threads);
        attend(&call, &item, &after, &s);
    }
}
