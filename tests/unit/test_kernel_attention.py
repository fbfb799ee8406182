"""Our attention kernel, for every instruction set that this CPU has, against plain float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels.build import INSTRUCTION_SETS, InstructionSet, KernelUnavailable, supported
from model.kernels.library import PagedAttentionLibrary, load_library
from model.nets.attention import PlainAttention, Span
from model.nets.config import ModelConfig, parse_config
from model.nets.kernel_attention import KernelAttention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=lambda one: one.name)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PagedAttentionLibrary:
    target: InstructionSet = request.param
    if target not in supported():
        pytest.skip(f"this CPU has no {target.name}")
    try:
        return load_library(PagedAttentionLibrary, target, tmp_path_factory.mktemp("kernels"))
    except KernelUnavailable as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Case:
    """One call: sequences as (cached tokens, new tokens), on blocks in any order."""

    group: int
    kv_heads: int
    head_dim: int
    block_size: int
    window: int | None
    sequences: tuple[tuple[int, int], ...]
    seed: int

    @property
    def config(self) -> ModelConfig:
        heads = self.group * self.kv_heads
        raw = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": heads * self.head_dim,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": 8,
            "max_position_embeddings": 8192,
        }
        return parse_config(raw)


class Cache:
    """A pool of one layer; what no sequence has written is NaN."""

    def __init__(self, case: Case) -> None:
        rng = torch.Generator().manual_seed(case.seed)
        size = case.block_size
        lengths = [-(-(start + count) // size) for start, count in case.sequences]
        self.block_size = size
        shape = (sum(lengths) + 3, 2, size, case.kv_heads, case.head_dim)
        self.pool = torch.full(shape, math.nan, dtype=torch.float16)
        ids = torch.randperm(shape[0], generator=rng)
        self.tables = list(torch.split(ids[: sum(lengths)], lengths))
        for table, (start, count) in zip(self.tables, case.sequences, strict=True):
            for position in range(start + count):
                values = torch.randn(2, case.kv_heads, case.head_dim, generator=rng)
                block = self.pool[table[position // size]]
                block[:, position % size] = values.bfloat16().half()
        queries = sum(count for _, count in case.sequences)
        heads = case.group * case.kv_heads
        self.q = 2 * torch.randn(queries, heads, case.head_dim, generator=rng)

    def layer(self, index: int) -> Tensor:
        return self.pool

    def read(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self.pool[table]
        return blocks[:, 0].flatten(0, 1), blocks[:, 1].flatten(0, 1)


def spans_of(case: Case, cache: Cache) -> tuple[Span, ...]:
    spans, first = [], 0
    for table, (start, count) in zip(cache.tables, case.sequences, strict=True):
        spans.append(Span(first, count, start, table))
        first += count
    return tuple(spans)


def plain(q: Tensor, cache: Cache, spans: Sequence[Span], window: int | None) -> Tensor:
    """Attention in float64, a query at a time: [n, heads * head_dim]."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for span in spans:
        keys, values = cache.read(0, span.table)
        group = q.shape[1] // keys.shape[1]
        for i in range(span.count):
            position = span.start + i
            seen = slice(0 if window is None else max(0, position - window + 1), position + 1)
            k = keys[seen].double().repeat_interleave(group, 1)
            v = values[seen].double().repeat_interleave(group, 1)
            scores = torch.einsum("hd,khd->hk", q[span.first + i].double(), k)
            weights = (scores * q.shape[2] ** -0.5).softmax(-1)
            out[span.first + i] = torch.einsum("hk,khd->hd", weights, v)
    return out.flatten(1)


def kernel(
    library: PagedAttentionLibrary, case: Case, dtype: torch.dtype, threads: int = 1
) -> KernelAttention:
    return KernelAttention(
        library, case.config, block_size=case.block_size, dtype=dtype, threads=threads
    )


def lengths(longest: int) -> st.SearchStrategy[tuple[int, int]]:
    counts = st.just(1) | st.integers(1, longest // 2)
    return st.tuples(st.just(0) | st.integers(1, longest), counts)


cases = st.builds(
    Case,
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 10, 32, 48, 64, 80, 96, 128, 192, 256]),
    block_size=st.sampled_from([1, 3, 16, 64, 100, 256]),
    window=st.none() | st.integers(1, 200),
    sequences=st.lists(lengths(150), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=60, deadline=None)
@given(case=cases, dtype=st.sampled_from(DTYPES), threads=st.integers(1, 2))
def test_it_is_attention(
    library: PagedAttentionLibrary, case: Case, dtype: torch.dtype, threads: int
) -> None:
    """Also beside NaN: in free blocks, and behind the end of the last block."""
    cache = Cache(case)
    spans, q = spans_of(case, cache), cache.q.to(dtype)
    found = kernel(library, case, dtype, threads)(0, q, cache, spans, case.window)
    assert found.dtype == dtype
    expected = plain(q, cache, spans, case.window)
    # Half a step of the result's own type, and of the weights where they are bfloat16.
    step = {torch.float32: 4e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    error = (found.double() - expected).abs().max()
    assert error <= step * max(1.0, float(expected.abs().max()))


@settings(max_examples=25, deadline=None)
@given(case=cases, dtype=st.sampled_from(DTYPES), chunk=st.integers(1, 40))
def test_bits_follow_from_query_and_cache_alone(
    library: PagedAttentionLibrary, case: Case, dtype: torch.dtype, chunk: int
) -> None:
    """In chunks and alone, or all at once: no other row, tile, thread or block border shows."""
    cache = Cache(case)
    spans, q = spans_of(case, cache), cache.q.to(dtype)
    together = kernel(library, case, dtype, threads=2)(0, q, cache, spans, case.window)
    apart = kernel(library, case, dtype)
    for span in spans:
        for at in range(0, span.count, chunk):
            rows = slice(span.first + at, span.first + min(at + chunk, span.count))
            part = Span(0, rows.stop - rows.start, span.start + at, span.table)
            found = apart(0, q[rows], cache, [part], case.window)
            assert torch.equal(found.view(torch.uint8), together[rows].view(torch.uint8))
    assert torch.equal(together, halved(library, case, dtype, cache))


def halved(library: PagedAttentionLibrary, case: Case, dtype: torch.dtype, cache: Cache) -> Tensor:
    """The same in blocks of one token."""
    small = Case(**{**vars(case), "block_size": 1})
    one = Cache(small)
    for table, old, (start, count) in zip(one.tables, cache.tables, case.sequences, strict=True):
        k, v = cache.read(0, old)
        one.pool[table, 0, 0] = k[: start + count]
        one.pool[table, 1, 0] = v[: start + count]
    attention = kernel(library, small, dtype)
    return attention(0, cache.q.to(dtype), one, spans_of(small, one), case.window)


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_work_is_cut_does_not_show(library: PagedAttentionLibrary, dtype: torch.dtype) -> None:
    """One thread takes all KV heads at once, two share a few long sequences head by head."""
    case = Case(3, 2, 64, 16, None, ((3000, 1), (70, 2), (1900, 1)), seed=8)
    cache = Cache(case)
    q, spans = cache.q.to(dtype), spans_of(case, cache)
    one, two = (
        kernel(library, case, dtype, threads)(0, q, cache, spans, None) for threads in (1, 2)
    )
    assert torch.equal(one, two)


def test_long_contexts_and_scores_far_apart(library: PagedAttentionLibrary) -> None:
    """Scores of hundreds: weights underflow, and the maximum moves from tile to tile."""
    case = Case(3, 2, 64, 16, None, ((3000, 1), (700, 60)), seed=3)
    cache = Cache(case)
    q, spans = 40 * cache.q, spans_of(case, cache)
    found = kernel(library, case, torch.float32)(0, q, cache, spans, None)
    expected = plain(q, cache, spans, None)
    assert (found - expected).abs().max() < 1e-3  # as scores of 600 are exact to 1e-4


def test_what_is_not_finite_in_a_query_shows_in_its_own_result(
    library: PagedAttentionLibrary,
) -> None:
    case = Case(2, 2, 32, 16, None, ((20, 3),), seed=4)
    cache = Cache(case)
    for dtype in DTYPES:
        q = cache.q.to(dtype)
        q[1, 2, 5] = math.nan
        out = kernel(library, case, dtype)(0, q, cache, spans_of(case, cache), None)
        bad = out.view(3, 4, 32).isnan().any(-1)
        assert bad.nonzero().tolist() == [[1, 2]]


def test_subnormal_keys_and_values_count(library: PagedAttentionLibrary) -> None:
    case = Case(1, 1, 16, 4, None, ((3, 1),), seed=5)
    cache = Cache(case)
    cache.pool.nan_to_num_().copy_(torch.full_like(cache.pool, 3 * 2.0**-24))
    q = torch.full((1, 1, 16), 2.0**20)
    found = kernel(library, case, torch.float32)(0, q, cache, spans_of(case, cache), None)
    assert found.tolist() == [[3 * 2.0**-24] * 16]


def test_it_refuses_what_would_read_elsewhere(library: PagedAttentionLibrary) -> None:
    case = Case(1, 1, 16, 4, None, ((7, 1),), seed=6)
    cache, attention = Cache(case), kernel(library, case, torch.float32)
    (span,) = spans_of(case, cache)
    for table, message in (
        (span.table[:1], "1 blocks do not hold 8 positions"),
        (torch.tensor([0, 5]), r"outside 0 \.\. 4"),
        (torch.tensor([-1, 0]), r"outside 0 \.\. 4"),
    ):
        with pytest.raises(IndexError, match=message):
            attention(0, cache.q, cache, [Span(0, 1, 7, table)], None)
    with pytest.raises(ValueError, match=r"\[1, 1, 8\] is not \[n, 1, 16\]"):
        attention(0, cache.q[..., :8], cache, [span], None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_gives_the_same_up_to_rounding(dtype: torch.dtype) -> None:
    """The fallback, on the same cases."""
    case = Case(3, 2, 64, 16, 50, ((100, 1), (0, 70), (33, 20)), seed=7)
    cache = Cache(case)
    cache.pool.nan_to_num_()
    q, spans = cache.q.to(dtype), spans_of(case, cache)
    inner = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    found = PlainAttention(inner)(0, q, cache, spans, case.window)
    expected = plain(q, cache, spans, case.window)
    step = {torch.float32: 4e-6, torch.bfloat16: 2**-6, torch.float16: 2**-10}[dtype]
    assert (found.double() - expected).abs().max() < step * expected.abs().max()
