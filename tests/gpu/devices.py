"""Where tests of CUDA code run: on the device, or, with TRITON_INTERPRET=1 and Triton installed, by
Triton's interpreter on the CPU. That proves arithmetic and indexing, not types, streams or graphs.

    TRITON_INTERPRET=1 python -m pytest tests/gpu/test_cuda_kernels.py tests/gpu/test_cuda_steps.py
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_CUDA = torch.cuda.is_available() and not _INTERPRETED

DEVICE = torch.device("cuda", 0) if HAS_CUDA else torch.device("cpu")

needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device"),
]
needs_triton = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not HAS_TRITON or not (HAS_CUDA or _INTERPRETED),
        reason="neither a CUDA device nor Triton's interpreter",
    ),
]
