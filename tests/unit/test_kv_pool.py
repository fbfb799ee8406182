"""What the FP16 cache makes of a value: the nearest FP16, of two equally near the even one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.cache.pool import FP16_LIMIT, KvPool

LARGEST = 65504.0
STEP = 2.0**-10  #: of FP16 from 1 to 2
TINY = 2.0**-24  #: its smallest number, and its step below 2^-14


def stored(values: torch.Tensor) -> npt.NDArray[np.float16]:
    """The pool's K of a token for each value, of which V is the negative.

    What is not finite in the pool must be what ``write`` says is beyond it.
    """
    count, size = len(values), 4
    blocks = -(-count // size)
    pool = KvPool(
        layers=1,
        num_blocks=blocks,
        block_size=size,
        kv_heads=1,
        head_dim=1,
        device=torch.device("cpu"),
    )
    where = np.arange(count)
    rows = torch.from_numpy(pool.rows_of(where // size, where % size))
    k = values.reshape(count, 1, 1)
    fits = pool.write(0, rows, k, -k) < FP16_LIMIT
    keys, negatives = (kv.flatten()[:count].numpy() for kv in pool.read(0, torch.arange(blocks)))
    assert fits.tolist() == np.isfinite(keys).tolist()
    assert_same(negatives, -keys)
    return keys


def assert_same(found: npt.NDArray[np.float16], expected: npt.NDArray[np.float16]) -> None:
    """Bit for bit, so that -0 is not 0; which NaN it is does not matter."""
    differ = found.view(np.uint16) != expected.view(np.uint16)
    differ &= ~(np.isnan(found) & np.isnan(expected))
    assert not differ.any(), (found[differ][:5], expected[differ][:5])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + STEP / 2, 1.0),  # a tie goes to the even one: down ...
        (1 + 3 * STEP / 2, 1 + 2 * STEP),  # ... and up
        (1 + STEP / 2 + 2**-23, 1 + STEP),  # just above a tie
        (1 + 3 * STEP / 2 - 2**-23, 1 + STEP),  # just below one
        (TINY / 2, 0.0),
        (TINY / 2 + 2**-31, TINY),
        (3 * TINY / 2, 2 * TINY),
        (5 * TINY / 2, 2 * TINY),
        (2.0**-14 - TINY / 2, 2.0**-14),  # from the subnormal to the normal ones
        (LARGEST, LARGEST),
        (FP16_LIMIT - 2**-8, LARGEST),  # the last float32 below the limit
        (FP16_LIMIT, math.inf),  # a tie, and the even one is beyond
        (65280.0, 65280.0),  # the last bfloat16 below the limit
        (65536.0, math.inf),  # and the first above it
        (math.inf, math.inf),
        (0.0, 0.0),
    ],
)
def test_ties_and_borders(value: float, expected: float) -> None:
    """In each type that has the value; alone and among many, as processors differ in the two."""
    made = [torch.tensor([value], dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    exact = [tensor for tensor in made if tensor.double().item() == value]
    assert exact[0].dtype is torch.float32
    for tensor in exact:
        for count in (1, 67):
            assert stored(tensor.repeat(count)).tolist() == [expected] * count


def test_every_tie_of_float32_and_what_is_next_to_it() -> None:
    every = np.arange(0x7C00, dtype=np.uint16)  # as bits: 0 to the largest, in order
    lower = every.view(np.float16)
    upper = (every + 1).astype(np.uint16).view(np.float16)
    above = np.where(np.isinf(upper), np.float32(2**16), upper.astype(np.float32))
    ties = (lower.astype(np.float32) + above) / 2
    even = np.where(every % 2 == 0, lower, upper)
    assert ties[-1] == FP16_LIMIT and np.isinf(even[-1])
    for values, expected in (
        (lower.astype(np.float32), lower),
        (np.nextafter(ties, np.float32(0)), lower),
        (ties, even),
        (np.nextafter(ties, np.float32(np.inf)), upper),
    ):
        assert_same(stored(torch.from_numpy(values)), expected)


def test_every_bfloat16_rounds_as_numpy_does() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = every.float().numpy().astype(np.float16)
    assert_same(stored(every), expected)


def test_more_than_the_machine_has_is_refused_before_it_is_taken() -> None:
    sizes = {"layers": 1, "num_blocks": 2**30, "block_size": 256, "kv_heads": 1, "head_dim": 256}
    with pytest.raises(ValueError, match=r"no memory on cpu for 1073741824 KV blocks.*kv-memory"):
        KvPool(**sizes, device=torch.device("cpu"))
