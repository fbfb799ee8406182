"""Paged attention in Triton: FlashAttention's online softmax over keys found by block table.

Dao et al., "FlashAttention-2" (2023); keys split over programs where there are few queries, as in
Flash-Decoding (Dao et al., 2023). The query heads that share a key head are rows of one tile, so
keys are read once for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


@triton.jit
def _attend(q, pool, query_starts, ends, page_starts, blocks, out, partial, weights, scale, window,
            HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
            BLOCK_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, WINDOWED: tl.constexpr):  # fmt: skip
    """One tile of rows (query times head of the group) over its keys, or over a share of them."""
    tile, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    sequence, kv_head = tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = HEADS // KV_HEADS
    first_query = tl.load(query_starts + sequence)
    count = tl.load(query_starts + sequence + 1) - first_query
    if tile * BLOCK_M >= count * group:
        return
    end = tl.load(ends + sequence)
    start = end - count
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query, head = rows // group, kv_head * group + rows % group
    valid = query < count
    position = start + query
    column = tl.arange(0, BLOCK_D)
    inside = column < HEAD_DIM
    place = ((first_query + query).to(tl.int64) * HEADS + head) * HEAD_DIM
    mask = valid[:, None] & inside[None, :]
    tile_q = tl.load(q + place[:, None] + column[None, :], mask=mask, other=0.0)

    # Keys that any row of the tile sees, from a whole tile of keys on.
    high = tl.minimum(end, start + (tile * BLOCK_M + BLOCK_M - 1) // group + 1)
    low = 0
    if WINDOWED:
        low = tl.maximum(start + tile * BLOCK_M // group - window + 1, 0) // BLOCK_N * BLOCK_N
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(high - low, SPLITS), BLOCK_N) * BLOCK_N
        low = low + split * share
        high = tl.minimum(high, low + share)

    first_page = tl.load(page_starts + sequence)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(low, high, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        known = key < high
        block = tl.load(blocks + first_page + key // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        row = block * (2 * BLOCK_SIZE) + key % BLOCK_SIZE
        line = (row * KV_HEADS + kv_head) * HEAD_DIM
        lines = pool + line[:, None] + column[None, :]
        here = known[:, None] & inside[None, :]
        # What lies beyond the last key is another sequence's leftover, maybe not even finite.
        k = tl.load(lines, mask=here, other=0.0)
        scores = tl.dot(tile_q, tl.trans(k)) * scale
        visible = (key[None, :] <= position[:, None]) & known[None, :]
        if WINDOWED:
            visible = visible & (key[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        factor = tl.exp2(top - higher)
        powers = tl.exp2(scores - higher[:, None])
        total = total * factor + tl.sum(powers, 1)
        v = tl.load(lines + BLOCK_SIZE * KV_HEADS * HEAD_DIM, mask=here, other=0.0)
        mixed = mixed * factor[:, None] + tl.dot(powers.to(tl.float16), v)
        top = higher

    sums = tl.where(total > 0, total, 1.0)
    result = mixed / sums[:, None]
    if SPLITS == 1:
        tl.store(out + place[:, None] + column[None, :], result.to(out.dtype.element_ty), mask=mask)
    else:
        # A share without a visible key has the weight of exp2(-1e30).
        slot = ((first_query + query).to(tl.int64) * HEADS + head) * SPLITS + split
        spot = partial + slot[:, None] * HEAD_DIM + column[None, :]
        tl.store(spot, result, mask=mask)
        tl.store(weights + slot, top + tl.log2(sums), mask=valid)


@triton.jit
def _combine(partial, weights, out, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
             SPLITS: tl.constexpr):  # fmt: skip
    """One query's head: the shares by the weight of their keys."""
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < HEAD_DIM
    split = tl.arange(0, SPLITS)
    exponents = tl.load(weights + line * SPLITS + split)
    share = tl.exp2(exponents - tl.max(exponents, 0))
    spots = partial + (line * SPLITS + split)[:, None] * HEAD_DIM + column[None, :]
    parts = tl.load(spots, mask=inside[None, :], other=0.0)
    result = tl.sum(parts * share[:, None], 0) / tl.sum(share, 0)
    tl.store(out + line * HEAD_DIM + column, result.to(out.dtype.element_ty), mask=inside)


def paged_attention(
    q: Tensor,
    pool: Tensor,
    query_starts: Tensor,
    ends: Tensor,
    page_starts: Tensor,
    blocks: Tensor,
    *,
    longest: int,
    window: int | None,
    splits: int,
    dtype: torch.dtype,
) -> Tensor:
    """Causal attention of q, FP16 [n, heads, head_dim], contiguous, over the keys of each
    sequence's blocks.

    ``pool`` is one layer of the KV pool; ``query_starts``, ``page_starts`` [sequences + 1],
    ``ends`` [sequences] and ``blocks`` are int32 as ``pack`` makes them; no sequence has more than
    ``longest`` queries. Keys are shared out over ``splits`` programs, a power of two. Returns
    [n, heads, head_dim] in ``dtype``.
    """
    tokens, heads, head_dim = q.shape
    block_size, kv_heads = pool.shape[2], pool.shape[3]
    rows = longest * (heads // kv_heads)
    block_m = min(max(16, triton.next_power_of_2(rows)), 64)
    block_d = max(16, triton.next_power_of_2(head_dim))
    out = torch.empty(tokens, heads, head_dim, dtype=dtype, device=q.device)
    partial = weights = out
    if splits > 1:
        partial = torch.empty(tokens, heads, splits, head_dim, device=q.device)
        weights = torch.empty(tokens, heads, splits, device=q.device)
    grid = (triton.cdiv(rows, block_m) * splits, ends.shape[0], kv_heads)
    _attend[grid](
        q,
        pool,
        query_starts,
        ends,
        page_starts,
        blocks,
        out,
        partial,
        weights,
        head_dim**-0.5 * _LOG2_E,
        window or 0,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_D=block_d,
        BLOCK_M=block_m,
        BLOCK_N=64 if block_d <= 128 else 32,
        SPLITS=splits,
        WINDOWED=window is not None,
        num_warps=4,
    )
    if splits > 1:
        _combine[(tokens * heads,)](
            partial, weights, out, HEAD_DIM=head_dim, BLOCK_D=block_d, SPLITS=splits
        )
    return out
