"""Rotary position embedding, plain and with Llama 3.1's scaling.

Su et al., "RoFormer" (2021); the scaling follows Meta's llama-models and transformers'
``_compute_llama3_parameters``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.nets.config import Llama3Scaling, RopeConfig

#: Rows computed at a time. A fixed shape makes the values independent of how long the table is.
_CHUNK = 1024


def frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position, float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.theta**exponents
    return plain if rope.llama3 is None else _llama3(plain, rope.llama3)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Keep short wavelengths, divide long ones by ``factor``, blend linearly in between."""
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_max_positions / wavelengths  # over the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1.0 - blend) * plain / scaling.factor + blend * plain


class RopeTable:
    """Cosines and signed sines of the first ``length`` positions, as ``rotate`` wants them:
    float32 [length, 1, head_dim] each."""

    def __init__(self, rope: RopeConfig, head_dim: int, length: int, device: torch.device) -> None:
        radians = frequencies(rope, head_dim)
        cos, sin = [], []
        for first in range(0, length, _CHUNK):
            positions = torch.arange(first, first + _CHUNK, dtype=torch.float32)
            angles = torch.outer(positions, radians)
            cos.append(angles.cos())
            sin.append(angles.sin())
        cosines, sines = torch.cat(cos)[:length], torch.cat(sin)[:length]
        self.length = length
        self.cos = torch.cat((cosines, cosines), -1)[:, None].to(device)
        self.sin = torch.cat((-sines, sines), -1)[:, None].to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for int64 ``positions`` [n]: two of float32 [n, 1, head_dim]."""
        return self.cos[positions], self.sin[positions]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [n, heads, head_dim] by the angles of their rows, in float32; keeps the dtype.

    Pairs are (i, i + head_dim / 2), the order of Hugging Face checkpoints: with left and right
    halves, (left * cos - right * sin, right * cos + left * sin).
    """
    wide = x.float()
    left, right = wide.chunk(2, dim=-1)
    swapped = torch.cat((right, left), dim=-1)
    # No fused multiply-add: it may round otherwise in the elements left over from whole vectors.
    return (wide * cos).add_(swapped.mul_(sin)).to(x.dtype)
