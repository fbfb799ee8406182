"""What the kernels compute, said plainly, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.plan import Slice


def attention(q: Tensor, pool: Tensor, slices: Sequence[Slice], window: int | None) -> Tensor:
    """Causal attention of q [n, heads, head_dim] over each slice's blocks of one layer."""
    out, first = [], 0
    for piece in slices:
        count, end = len(piece.token_ids), piece.end
        blocks = pool[list(piece.block_table)].double()
        k, v = (blocks[:, part].flatten(0, 1)[:end] for part in (0, 1))
        queries = q[first : first + count].double()
        first += count
        group = queries.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", queries, k) * q.shape[2] ** -0.5
        position = torch.arange(piece.start, end, device=q.device)[:, None]
        key = torch.arange(end, device=q.device)
        visible = key <= position
        if window is not None:
            visible &= key > position - window
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(out)
