/* Rows times a matrix packed for it, for one instruction set per build.
 *
 * A matrix [outputs, inputs] is cut into panels of OUTPUTS outputs. A panel is one contiguous
 * stretch, two inputs of all its outputs after another (a step), so that with few rows, where
 * reading weights is all that takes time, memory is read in one stream, and with many a panel stays
 * in the cache while row after row passes over it (blocking for registers and caches: Goto and van
 * de Geijn, 2008). Rows are packed likewise, LANES of them beside one another.
 *
 * Weights are float32, bfloat16 or small integers, widened in registers to what is multiplied:
 * float32, or, with AVX512_BF16, pairs of bfloat16 (accumulated in float32): twice as many a cycle,
 * exact where the rows were bfloat16, as all the integers are.
 *
 * An output is one sum in one register from its first input to its last, in every instance of
 * `product`. So a row's result is bitwise a function of that row and the matrix: it depends neither
 * on the rows beside it nor on the thread. */

#include <stdint.h>
#include <string.h>

#include "elements.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Rows that a product holds in registers, beside two vectors of weights. */
#if WIDTH == 16
#define ROWS 14
#else
#define ROWS 6
#endif
#define LANES ((ROWS + WIDTH - 1) / WIDTH * WIDTH)
#define OUTPUTS (2 * WIDTH)
#define GROUP 32            /* inputs of an output that share a scale, INT4 */
#define SCALES (4 * OUTPUTS) /* bytes of a group's scales in a panel */
#define NEAR (384 << 10)    /* bytes of packed rows that stay in a core's cache beside a panel */
#define AHEAD 8192          /* bytes from what is read to what memory is asked for */

enum weights { AS_FLOAT32, AS_BFLOAT16, INT8, INT4 };

/* What stays the same from call to call. */
struct linear {
    int64_t inputs, outputs;
    int64_t weights; /* enum weights */
    int64_t type;    /* of rows and results, as in elements.h */
    int64_t pairs;   /* multiply pairs of bfloat16, of bfloat16 rows; only where `has_pairs` */
};

/* ---- weights ---- */

INLINE int64_t step_bytes(const int weights) {
    return OUTPUTS * (weights == AS_FLOAT32 ? 8 : weights == AS_BFLOAT16 ? 4 : weights == INT8 ? 2 : 1);
}

INLINE int64_t steps_of(const struct linear *linear) { return (linear->inputs + 1) / 2; }

static int64_t bytes_of_panel(const struct linear *linear) {
    int64_t scales = linear->weights == INT4 ? linear->inputs / GROUP * SCALES : 0;
    return steps_of(linear) * step_bytes(linear->weights) + scales;
}

/* One vector of weights of a step: of its first and its second input, or `first` holds both. */
struct widened {
    vec first, second;
};

#if HAS_PAIRS

/* The low (which 0) or high (1) bytes of 64 `from` .. `from` + 63 as bfloat16. */
INLINE __m512i bytes_of(int from, const int which) {
    uint8_t bytes[64];
    for (int i = 0; i < 64; i++) bytes[i] = to_bf16(from + i) >> 8 * which;
    return _mm512_loadu_si512(bytes);
}

/* Both vectors of a step of INT8. The bytes are sign and magnitude; both bytes of a bfloat16 are
 * looked up by the magnitude. */
INLINE void widen_bytes(const char *from, struct widened right[2]) {
    const __m512i x = _mm512_loadu_si512(from);
    __m512i low = _mm512_permutex2var_epi8(bytes_of(0, 0), x, bytes_of(64, 0));
    __m512i high = _mm512_permutex2var_epi8(bytes_of(0, 1), x, bytes_of(64, 1));
    const int high_or_sign = 0xf8; /* high | (x & the sign) */
    high = _mm512_ternarylogic_epi32(high, x, _mm512_set1_epi8(-128), high_or_sign);
    right[0].first = (vec)_mm512_unpacklo_epi8(low, high);
    right[1].first = (vec)_mm512_unpackhi_epi8(low, high);
}

#else
INLINE void widen_bytes(const char *from, struct widened right[2]) {} /* never called */
#endif

#if WIDTH == 16
INLINE ints from_bytes(const char *from) {
    return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
#elif WIDTH == 8
INLINE ints from_bytes(const char *from) {
    return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
#else
INLINE ints from_bytes(const char *from) {
    const uint8_t *x = (const uint8_t *)from;
    return (ints){x[0], x[1], x[2], x[3]};
}
#endif

INLINE vec to_floats(ints x) { return __builtin_convertvector(x, vec); }

/* What is added to the steps of INT4 as they are widened: in pairs, 128 costs nothing. */
#define OFFSET(pairs) (pairs ? 128 : 0)

/* Vector v of a step. */
INLINE struct widened widen(const int pairs, const int weights, const char *step, const int v) {
    const char *from = step + v * step_bytes(weights) / 2;
    if (weights == AS_FLOAT32) {
        const float *both = (const float *)step + v * WIDTH;
        return (struct widened){load(both), load(both + OUTPUTS)};
    }
    if (weights == AS_BFLOAT16) {
        const vec x = load((const float *)from);
        if (pairs) return (struct widened){x};
        return (struct widened){(vec)((ints)x << 16), (vec)((ints)x & -65536)};
    }
    if (weights == INT8) {
        halves x;
        memcpy(&x, from, sizeof x);
        const ints both = __builtin_convertvector(x, ints);
        return (struct widened){to_floats(both << 24 >> 24), to_floats(both << 16 >> 24)};
    }
    const ints x = from_bytes(from);
    if (pairs) return (struct widened){(vec)(((x | x << 12) & 0x000f000f) | 0x43004300)};
    return (struct widened){to_floats(x & 15), to_floats(x >> 4)};
}

/* ---- products ---- */

INLINE void clear(const int rows, vec sum[ROWS][2]) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = broadcast(0);
}

/* sum += the products of `steps` steps, in order; a is [steps or 2 steps, LANES]. */
INLINE void add_steps(const int rows, const int pairs, const int weights, int64_t steps,
                      const float *a, const char *panel, int64_t ahead, vec sum[ROWS][2]) {
    const int64_t each = step_bytes(weights);
    for (; steps > 0; steps--, panel += each) {
        struct widened right[2];
        if (weights == INT8 && pairs) {
            widen_bytes(panel, right);
        } else {
            right[0] = widen(pairs, weights, panel, 0);
            right[1] = widen(pairs, weights, panel, 1);
        }
        /* With few rows of wide weights memory is all that matters, and the CPU guesses best. */
        if (weights >= INT8 || rows >= ROWS / 2)
            for (int64_t i = 0; i < each; i += 64) __builtin_prefetch(panel + ahead + i, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const vec left = broadcast(a[r]);
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++)
                sum[r][v] = pairs ? add_pairs(sum[r][v], left, right[v].first)
                                  : sum[r][v] + left * right[v].first;
        }
        a += LANES;
        if (pairs) continue;
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const vec left = broadcast(a[r]);
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) sum[r][v] = sum[r][v] + left * right[v].second;
        }
        a += LANES;
    }
}

/* The scales of a group of INT4, w = scale * q + base. */
INLINE void take_scales(const int pairs, const char *from, vec scale[2], vec base[2]) {
    for (int v = 0; v < 2; v++) {
        const ints both = (ints)load((const float *)from + v * WIDTH);
        scale[v] = (vec)(both << 16);
        base[v] = (vec)(both & -65536) - scale[v] * (float)(8 + OFFSET(pairs));
    }
}

/* result = rows of a times a panel. `sums` [groups, LANES]: of the rows' inputs, for INT4. */
INLINE void product(const int rows, const int pairs, const int weights, int64_t steps,
                    const float *a, const float *sums, const char *panel, int64_t ahead,
                    vec result[ROWS][2]) {
    vec sum[ROWS][2];
    if (weights != INT4) {
        clear(rows, sum);
        add_steps(rows, pairs, weights, steps, a, panel, ahead, sum);
        memcpy(result, sum, rows * sizeof *sum);
        return;
    }
    const int64_t group = GROUP / 2;
    clear(rows, result);
    for (; steps > 0; steps -= group, sums += LANES) {
        vec scale[2], base[2];
        clear(rows, sum);
        add_steps(rows, pairs, weights, group, a, panel + SCALES, ahead, sum);
        take_scales(pairs, panel, scale, base);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < 2; v++)
                result[r][v] = result[r][v] + sum[r][v] * scale[v] + base[v] * sums[r];
        a += group * (pairs ? 1 : 2) * LANES;
        panel += SCALES + group * step_bytes(weights);
    }
}

typedef void multiply_rows(int64_t steps, const float *a, const float *sums, const char *panel,
                           int64_t ahead, vec result[ROWS][2]);

/* Apart from one another, so that each has all registers. */
#define DEFINE(rows, pairs, weights) \
    static __attribute__((noinline)) void rows_##rows##_##pairs##_##weights( \
        int64_t steps, const float *a, const float *sums, const char *panel, int64_t ahead, \
        vec result[ROWS][2]) { \
        product(rows, pairs, weights, steps, a, sums, panel, ahead, result); \
    }
#define NAME(rows, pairs, weights) rows_##rows##_##pairs##_##weights,

#define SIX(DO, pairs, weights) \
    DO(1, pairs, weights) DO(2, pairs, weights) DO(3, pairs, weights) \
    DO(4, pairs, weights) DO(5, pairs, weights) DO(6, pairs, weights)
#if ROWS == 14
#define EACH(DO, pairs, weights) \
    SIX(DO, pairs, weights) \
    DO(7, pairs, weights) DO(8, pairs, weights) DO(9, pairs, weights) DO(10, pairs, weights) \
    DO(11, pairs, weights) DO(12, pairs, weights) DO(13, pairs, weights) DO(14, pairs, weights)
#else
#define EACH SIX
#endif

EACH(DEFINE, 0, AS_FLOAT32)
EACH(DEFINE, 0, AS_BFLOAT16)
EACH(DEFINE, 0, INT8)
EACH(DEFINE, 0, INT4)
static multiply_rows *const by_floats[4][ROWS] = {
    {EACH(NAME, 0, AS_FLOAT32)}, {EACH(NAME, 0, AS_BFLOAT16)},
    {EACH(NAME, 0, INT8)}, {EACH(NAME, 0, INT4)}};
#if HAS_PAIRS
EACH(DEFINE, 1, AS_BFLOAT16)
EACH(DEFINE, 1, INT8)
EACH(DEFINE, 1, INT4)
static multiply_rows *const by_pairs[4][ROWS] = {
    {NULL}, {EACH(NAME, 1, AS_BFLOAT16)}, {EACH(NAME, 1, INT8)}, {EACH(NAME, 1, INT4)}};
#else
#define by_pairs by_floats /* never used */
#endif

/* ---- rows ---- */

/* Floats, or pairs, that a row has; and with its groups' sums behind them. */
INLINE int64_t depth_of(const struct linear *linear) {
    return steps_of(linear) * (linear->pairs ? 1 : 2);
}

INLINE int64_t packed_floats(const struct linear *linear) {
    int64_t groups = linear->weights == INT4 ? linear->inputs / GROUP : 0;
    return (depth_of(linear) + groups) * LANES;
}

/* WIDTH inputs, or as many pairs of them, of one row from `at` on; zeros behind the last. */
INLINE vec take_inputs(const struct linear *linear, const void *row, int64_t at) {
    if (!linear->pairs) {
        int64_t left = linear->inputs - at;
        const void *from = element(linear->type, row, at);
        if (linear->type == FLOAT32) return take(FLOAT32, from, left);
        return linear->type == BFLOAT16 ? take(BFLOAT16, from, left) : take(FLOAT16, from, left);
    }
    int64_t left = linear->inputs - 2 * at;
    const uint16_t *from = (const uint16_t *)row + 2 * at;
    if (left >= 2 * WIDTH) return load((const float *)from);
    vec x = broadcast(0);
    memcpy(&x, from, left * sizeof *from);
    return x;
}

/* `count` <= ROWS rows from x on. Lanes beyond them repeat the last. */
static void pack_rows(const struct linear *linear, const void *x, int64_t count, float *to) {
    const int64_t depth = depth_of(linear), each = GROUP / (linear->pairs ? 2 : 1);
    float *sums = to + depth * LANES;
    for (int64_t lane = 0; lane < count; lane += WIDTH) {
        for (int64_t at = 0; at < depth; at += WIDTH) {
            vec square[WIDTH];
            for (int i = 0; i < WIDTH; i++) {
                int64_t row = lane + i < count ? lane + i : count - 1;
                square[i] = take_inputs(linear, element(linear->type, x, row * linear->inputs), at);
            }
            transpose(square);
            for (int i = 0; i < WIDTH && at + i < depth; i++)
                store(to + (at + i) * LANES + lane, square[i]);
        }
        for (int64_t at = 0; linear->weights == INT4 && at < depth; at += each) {
            vec sum = broadcast(0);
            for (int64_t i = at; i < at + each; i++) {
                const vec x = load(to + i * LANES + lane);
                if (linear->pairs) sum = sum + (vec)((ints)x << 16) + (vec)((ints)x & -65536);
                else sum = sum + x;
            }
            store(sums + at / each * LANES + lane, sum);
        }
    }
}

/* Scales and adds the bias to a panel's sums, from `output` on, of rows `row` .. `row` + count - 1. */
static void give_results(const struct linear *linear, int64_t row, int64_t count, int64_t output,
                         vec sum[ROWS][2], const float *scales, const float *bias, void *y) {
    for (int64_t r = 0; r < count; r++)
        for (int v = 0; v < 2; v++) {
            const int64_t at = output + v * WIDTH, left = linear->outputs - at;
            if (left <= 0) break;
            void *to = (void *)element(linear->type, y, (row + r) * linear->outputs + at);
            vec x = sum[r][v];
            if (scales) x = x * load(scales + at);
            if (bias) x = x + load(bias + at);
            if (linear->type == FLOAT32) give(FLOAT32, to, x, left);
            else if (linear->type == BFLOAT16) give(BFLOAT16, to, x, left);
            else give(FLOAT16, to, x, left);
        }
}

/* ---- what is called from outside ---- */

int64_t has_pairs(void) { return HAS_PAIRS; }

int64_t panel_outputs(void) { return OUTPUTS; }

/* Blocks of at most ROWS rows, and how many of them are packed at a time. */
INLINE int64_t blocks_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

static int64_t blocks_at_once(const struct linear *linear, int64_t rows) {
    int64_t most = NEAR / (packed_floats(linear) * sizeof(float)), blocks = blocks_of(rows);
    return most < 1 ? 1 : most < blocks ? most : blocks;
}

/* Bytes of scratch that each thread needs for so many rows, a multiple of 64. */
int64_t scratch_bytes(const struct linear *linear, int64_t rows) {
    return (blocks_at_once(linear, rows) * packed_floats(linear) * sizeof(float) + 63) / 64 * 64;
}

/* y [rows, outputs] = x [rows, inputs] times the panels.
 *
 * Panels follow one another, [panel, step, output, 2 inputs], filled up with zeros: float32 the
 * other way round, [2 inputs, output]; INT8 in pairs as sign and magnitude, [4, 2, 4 outputs, 2
 * inputs] with outputs ordered 16 v + 4 i + o; INT4 a byte per output, the first input's q + 8 in
 * its low nibble, and before every GROUP / 2 steps scale and zero, bfloat16 [output, 2]. `scales`
 * (INT8 alone) and `bias` are NULL or float32, filled up like the panels. Scratch is 64-byte
 * aligned. */
void multiply(const struct linear *linear, const void *x, int64_t rows, const void *panels,
              const float *scales, const float *bias, void *y, int64_t threads, void *scratch) {
    const int64_t blocks = blocks_of(rows), at_once = blocks_at_once(linear, rows);
    const int64_t spans = (blocks + at_once - 1) / at_once; /* of blocks, packed together */
    const int64_t count = (linear->outputs + OUTPUTS - 1) / OUTPUTS, items = spans * count;
    const int64_t bytes = bytes_of_panel(linear), own = scratch_bytes(linear, rows);
    const int64_t sums = depth_of(linear) * LANES, packed = packed_floats(linear);
    multiply_rows *const *variants =
        linear->pairs ? by_pairs[linear->weights] : by_floats[linear->weights];
#define FIRST(block) (rows * (block) / blocks)
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = 0, team = 1, span = -1, low = 0, high = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num(), team = omp_get_num_threads();
#endif
        float *a = (float *)((char *)scratch + thread * own);
        for (int64_t item = items * thread / team; item < items * (thread + 1) / team; item++) {
            const char *panel = (const char *)panels + item % count * bytes;
            if (item / count != span) {
                span = item / count, low = blocks * span / spans, high = blocks * (span + 1) / spans;
                for (int64_t b = low; b < high; b++)
                    pack_rows(linear, element(linear->type, x, FIRST(b) * linear->inputs),
                              FIRST(b + 1) - FIRST(b), a + (b - low) * packed);
            }
            for (int64_t b = low; b < high; b++) {
                /* The last pass over a panel that is in the cache asks for the next panel. */
                const int64_t ahead = high - low > 1 && b == high - 1 ? bytes : AHEAD;
                const int64_t some = FIRST(b + 1) - FIRST(b);
                const float *rows_of_a = a + (b - low) * packed;
                vec sum[ROWS][2];
                variants[some - 1](steps_of(linear), rows_of_a, rows_of_a + sums, panel, ahead, sum);
                give_results(linear, FIRST(b), some, item % count * OUTPUTS, sum, scales, bias, y);
            }
        }
    }
#undef FIRST
}
