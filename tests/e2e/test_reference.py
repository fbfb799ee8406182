"""Each model family through gateway, prefill and decode processes, against transformers.

The nets alone are compared in tests/integration; but in the long suite two families, those that
differ most from the demo model, stand for all here.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e import client
from tests.e2e.cluster import cluster
from tests.reference import FAMILIES, make_checkpoint, reference_greedy

TOKENS = 64
#: Two summation orders in float32 differ by about this much in a logit of these models.
EPSILON = 1e-3
SHORT = {"mistral", "qwen3"}


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in FAMILIES],
)
async def test_64_greedy_tokens_equal_the_reference(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(family, tmp_path)
    rng = random.Random(family)
    # Longer than the sliding window, in two chunks, and no multiple of the block size.
    prompt = [256, *(rng.randrange(256) for _ in range(70))]
    wanted, gaps = reference_greedy(checkpoint, prompt, TOKENS)
    assert len(set(wanted)) > TOKENS / 4, "the output must not repeat itself to prove anything"
    with cluster(checkpoint, "--chunk-tokens", "48") as running:
        async with client.connect(running.url) as http:
            got = await client.tokens(http, client.body(prompt, TOKENS))
    assert len(got) == TOKENS
    first = next(
        (i for i, pair in enumerate(zip(got, wanted, strict=True)) if len({*pair}) > 1), None
    )
    if first is not None:
        print(f"{family}: differs at token {first}, where the reference's gap is {gaps[first]:.2e}")
        assert gaps[first] < EPSILON, (family, first, gaps[first])
