"""Every kernel, and every way to attend, against float64."""

from __future__ import annotations

from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baton.settings import AttentionChoice
from model.cuda.buffers import Mirror, StepInputs
from model.cuda.choice import WAYS
from model.cuda.int8 import CudaInt8
from model.cuda.packing import Tables, pack
from model.cuda.paged import AttentionShape
from model.engine.plan import Slice
from model.nets.rope import rotate
from tests.gpu.devices import DEVICE, HAS_CUDA, needs_triton
from tests.gpu.plain import attention

pytestmark = needs_triton
EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: Of results rounded to each; the interpreter cuts bfloat16 off where a device rounds.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
DECODES = ((1, 0), (1, 40), (1, 200), (1, 15), (1, 900))
MIXED = ((30, 0), (7, 33), (1, 90), (130, 5), (1, 0))


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def close(
    found: Tensor, expected: Tensor, dtype: torch.dtype, rounded: torch.dtype | None = None
) -> None:
    """``found`` is of ``dtype``, and has been ``rounded`` to another on the way."""
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert found.dtype == dtype
    assert float(error) < max(ROUNDING[dtype], ROUNDING[rounded or dtype]), float(error)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def packed(shapes: tuple[tuple[int, int], ...], size: int, blocks: int) -> list[Slice]:
    """Slices of (tokens, tokens before them), tables scattered over the pool without overlap."""
    free = Random(1).sample(range(blocks), blocks)
    return [
        Slice(i, [1] * count, start, [free.pop() for _ in range(-(-(count + start) // size))])
        for i, (count, start) in enumerate(shapes)
    ]


def upload(slices: list[Slice], size: int, rows: int | None = None, scratch: int = 0) -> StepInputs:
    laid = pack(slices, Tables(size).of(slices), size, rows=rows, scratch=scratch)
    return Mirror(laid.layout.size, DEVICE).upload(laid, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [60, 2048, 4096])
def test_add_norm(dtype: torch.dtype, hidden: int) -> None:
    from model.cuda.kernels.layers import add_norm

    x, delta = normal(5, hidden, dtype=dtype), normal(5, hidden, dtype=dtype)
    weight = normal(hidden, dtype=dtype)
    total, normed = add_norm(x, delta, weight, EPS)
    close(total, x.double() + delta.double(), dtype)
    close(normed, F.rms_norm(total.double(), (hidden,), weight.double(), EPS), dtype)
    same, normed = add_norm(x, None, weight, EPS)
    assert same is x
    close(normed, F.rms_norm(x.double(), (hidden,), weight.double(), EPS), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [100, 8192])
def test_silu_mul(dtype: torch.dtype, size: int) -> None:
    from model.cuda.kernels.layers import silu_mul

    both = normal(3, 2 * size, dtype=dtype)
    gate, up = both.double().chunk(2, -1)
    close(silu_mul(both), F.silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_rotate_and_store(dtype: torch.dtype, normed: bool, head_dim: int) -> None:
    from model.cuda.kernels.layers import rotate_and_store

    heads, kv_heads, size, tokens = 6, 2, 4, 5
    qkv = normal(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    gains = normal(heads + kv_heads, head_dim, dtype=dtype) if normed else None
    angles = normal(50, head_dim // 2) * 3
    positions, keys = [3, 0, 49, 7, 7], [0, 2 * size + 1, 3, 3 * 2 * size + 2, 1]
    pool = torch.full((5, 2, size, kv_heads, head_dim), 9.0, device=DEVICE).half()
    peaks = torch.empty(tokens, kv_heads, device=DEVICE)
    q = rotate_and_store(
        qkv,
        gains,
        angles.cos(),
        angles.sin(),
        integers(positions),
        integers(keys),
        pool,
        peaks,
        heads=heads,
        eps=EPS,
    )
    parts = qkv.view(tokens, -1, head_dim)
    qk, v = parts[:, :-kv_heads], parts[:, -kv_heads:]
    if gains is not None:
        qk = (F.rms_norm(qk.double(), (head_dim,), None, EPS) * gains.double()).to(dtype)
    turned = torch.cat((angles, angles), -1)[positions][:, None]
    sign = torch.cat((-torch.ones(head_dim // 2), torch.ones(head_dim // 2))).to(DEVICE)
    rotated = rotate(qk, turned.cos(), turned.sin() * sign)
    expected_q, k = rotated.split([heads, kv_heads], 1)
    close(q, expected_q, torch.float16, dtype)
    rows = pool.view(-1, kv_heads, head_dim)
    close(rows[keys], k.half(), torch.float16, dtype)
    assert torch.equal(rows[[key + size for key in keys]], v.half())
    untouched = set(range(len(rows))) - {*keys, *(key + size for key in keys)}
    assert (rows[sorted(untouched)] == 9).all()
    magnitude = torch.maximum(k.float().abs(), v.float().abs()).amax(-1)
    assert torch.allclose(peaks, magnitude, rtol=ROUNDING[dtype])


def test_peaks_beyond_fp16_and_of_nan_are_seen() -> None:
    from model.cuda.kernels.layers import rotate_and_store

    qkv = torch.zeros(3, 3 * 4, device=DEVICE)
    qkv[0, 4] = 1e6  # a key
    qkv[1, 8] = torch.nan  # a value
    peaks = torch.empty(3, 1, device=DEVICE)
    pool = torch.zeros(1, 2, 4, 1, 4, device=DEVICE).half()
    ones, nothing = torch.ones(1, 2, device=DEVICE), torch.zeros(1, 2, device=DEVICE)
    where = integers([0, 1, 2])
    zeros = integers([0, 0, 0])
    rotate_and_store(qkv, None, ones, nothing, zeros, where, pool, peaks, heads=1, eps=EPS)
    assert peaks[:, 0].tolist() == [1e6, float("inf"), 0.0]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("shapes", [DECODES, MIXED])
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "size"),
    [(8, 2, 64, 16), (8, 8, 128, 16), (32, 8, 64, 64), (6, 2, 10, 5)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(
    name: AttentionChoice,
    shapes: tuple[tuple[int, int], ...],
    window: int | None,
    heads: int,
    kv_heads: int,
    head_dim: int,
    size: int,
    dtype: torch.dtype,
) -> None:
    if not HAS_CUDA and (name != "kernel" or heads > 8):
        pytest.skip("the interpreter knows our kernel alone, and is slow")
    shape = AttentionShape(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=size,
        windows=(None, window),
        max_positions=1024,
        dtype=dtype,
        device=DEVICE,
    )
    way = WAYS[name]
    if refusal := way.refusal(shape):
        pytest.skip(refusal)
    paged = way.make(shape)
    blocks = 400
    pool = normal(blocks + 1, 2, size, kv_heads, head_dim, dtype=torch.float16)
    slices = packed(shapes, size, blocks)
    # What lies behind the last key must not matter.
    last = slices[1]
    pool[last.block_table[-1], :, last.end % size or size :] = torch.nan
    step = upload(slices, size)
    q = normal(step.tokens, heads, head_dim, dtype=torch.float16)
    paged.prepare(step)
    for layer, seen in enumerate(shape.windows):
        found = paged.attend(layer, q, pool, step)
        # Weights are rounded to FP16 before they meet the values.
        expected = attention(q, pool, slices, seen).flatten(1)
        assert found.dtype == dtype and found.shape == expected.shape
        tolerance = 2e-3 if dtype == torch.float32 else 2e-2
        assert float((found.double() - expected).abs().max()) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 16, 40, 64, 65, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(100, 70), (512, 2048)])
@pytest.mark.parametrize("biased", [False, True])
def test_int8(dtype: torch.dtype, rows: int, outputs: int, inputs: int, biased: bool) -> None:
    if not HAS_CUDA and (outputs > 100 or 16 < rows < 65 or dtype == torch.bfloat16):
        pytest.skip("the interpreter is slow, and has no products of bfloat16")
    weight = normal(outputs, inputs, dtype=dtype)
    bias = normal(outputs, dtype=dtype) if biased else None
    x = normal(rows, inputs, dtype=dtype)
    linear = CudaInt8(weight, bias)
    assert linear.nbytes == outputs * (inputs + weight.element_size())
    scale = (weight.float().abs().amax(1) / 127).to(dtype).double()
    steps = (weight.double() / scale[:, None]).round().clamp(-127, 127)
    expected = x.double() @ (steps * scale[:, None]).T
    if bias is not None:
        expected += bias.double()
    # A tie may round to either side in float32.
    error = (linear(x).double() - expected).abs().max() / expected.abs().max()
    assert float(error) < 2 * ROUNDING[dtype] + 1e-4
