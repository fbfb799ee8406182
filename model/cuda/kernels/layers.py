"""What stands between two matrix products of a layer, one kernel each.

A decode step of a small model takes as many microseconds to start its kernels as to read its
weights, so there are as few as can be. Arithmetic is float32; what torch's own functions would
round on the way (the sum of the stream, q and k before and after rotation) is rounded here, too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm(x, delta, weight, total, normed, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
              ADD: tl.constexpr):  # fmt: skip
    """One row: total = x + delta; normed = RMS norm of total."""
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    stream = tl.load(x + row + column, mask=inside, other=0.0)
    if ADD:
        more = tl.load(delta + row + column, mask=inside, other=0.0)
        stream = (stream.to(tl.float32) + more.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + row + column, stream, mask=inside)
    wide = stream.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / HIDDEN + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + column, (wide * scale * gain).to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its RMS norm times ``weight``), [n, hidden] each; no ``delta`` adds nothing."""
    rows, hidden = x.shape
    total = x if delta is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _add_norm[(rows,)](
        x,
        x if delta is None else delta,
        weight,
        total,
        normed,
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        ADD=delta is not None,
        num_warps=min(max(block // 512, 1), 16),
    )
    return total, normed


@triton.jit
def _silu_mul(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    gate = tl.load(gate_up + row * (2 * SIZE) + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * SIZE) + SIZE + column, mask=inside, other=0.0)
    kind = out.dtype.element_ty
    active = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out + row * SIZE + column, (active * up.to(tl.float32)).to(kind), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [n, 2 * intermediate], gate first: [n, intermediate]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    block = min(triton.next_power_of_2(size), 1024)
    _silu_mul[(rows, triton.cdiv(size, block))](gate_up, out, SIZE=size, BLOCK=block)
    return out


@triton.jit
def _rotate_and_store(qkv, gains, cos, sin, positions, keys, q, pool, peaks, eps,
                      HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
                      BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
                      NORM: tl.constexpr):  # fmt: skip
    """One token's query head, or key and value head."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < HALF
    kind = qkv.dtype.element_ty
    line = qkv + token * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head * (2 * HALF) + column
    left = tl.load(line, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(line + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(left * left + right * right, axis=0) / (2 * HALF) + eps)
        gain = gains + head * (2 * HALF) + column
        left = left * scale * tl.load(gain, mask=inside, other=0.0).to(tl.float32)
        right = right * scale * tl.load(gain + HALF, mask=inside, other=0.0).to(tl.float32)
        left, right = left.to(kind).to(tl.float32), right.to(kind).to(tl.float32)
    angle = tl.load(positions + token).to(tl.int64) * HALF + column
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    turned_left = (left * c - right * s).to(kind).to(tl.float32)
    turned_right = (right * c + left * s).to(kind).to(tl.float32)
    if head < HEADS:
        out = q + (token * HEADS + head) * (2 * HALF) + column
        tl.store(out, turned_left.to(tl.float16), mask=inside)
        tl.store(out + HALF, turned_right.to(tl.float16), mask=inside)
    else:
        kv_head = head - HEADS
        row = tl.load(keys + token).to(tl.int64)
        slot = pool + (row * KV_HEADS + kv_head) * (2 * HALF) + column
        tl.store(slot, turned_left.to(tl.float16), mask=inside)
        tl.store(slot + HALF, turned_right.to(tl.float16), mask=inside)
        values = line + KV_HEADS * (2 * HALF)
        first = tl.load(values, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(values + HALF, mask=inside, other=0.0).to(tl.float32)
        slot = slot + BLOCK_SIZE * KV_HEADS * (2 * HALF)
        tl.store(slot, first.to(tl.float16), mask=inside)
        tl.store(slot + HALF, second.to(tl.float16), mask=inside)
        peak = tl.maximum(
            tl.maximum(_magnitude(turned_left), _magnitude(turned_right)),
            tl.maximum(_magnitude(first), _magnitude(second)),
        )
        tl.store(peaks + token * KV_HEADS + kv_head, tl.max(peak, axis=0))


@triton.jit
def _magnitude(x):
    """Of NaN infinity, which no maximum loses."""
    return tl.where(x == x, tl.abs(x), float("inf"))


def rotate_and_store(
    qkv: Tensor,
    gains: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    pool: Tensor,
    peaks: Tensor,
    *,
    heads: int,
    eps: float,
) -> Tensor:
    """Rope of q and k, q and k norm before it, and K and V rounded to FP16 into the pool.

    ``qkv`` [n, (heads + 2 * kv_heads) * head_dim], ``gains`` [heads + kv_heads, head_dim] of the
    norms, ``cos`` and ``sin`` float32 [positions, head_dim / 2], ``positions`` and ``keys`` int32
    [n] (see ``pack``), ``pool`` one layer of the KV pool. Writes the largest magnitude among each
    token's and head's K and V, before rounding to FP16, to ``peaks``, float32 [n, kv_heads]; NaN
    counts as infinity. Returns q, FP16 [n, heads, head_dim].
    """
    tokens, head_dim = qkv.shape[0], pool.shape[-1]
    block_size, kv_heads = pool.shape[2], pool.shape[3]
    q = torch.empty(tokens, heads, head_dim, dtype=torch.float16, device=qkv.device)
    half = head_dim // 2
    _rotate_and_store[(tokens, heads + kv_heads)](
        qkv,
        qkv if gains is None else gains,
        cos,
        sin,
        positions,
        keys,
        q,
        pool,
        peaks,
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=half,
        BLOCK_SIZE=block_size,
        BLOCK=triton.next_power_of_2(half),
        NORM=gains is not None,
        num_warps=1,
    )
    return q
