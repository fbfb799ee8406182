"""Our functions of single tokens, for every instruction set that this CPU has, against torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache.pool import FP16_LIMIT, KvPool
from model.kernels.build import INSTRUCTION_SETS, InstructionSet, KernelUnavailable, supported
from model.kernels.library import TokenOpsLibrary, load_library
from model.nets.config import ModelConfig, parse_config
from model.nets.kernel_ops import KernelOps
from model.nets.ops import TokenOps, TorchOps
from model.nets.rope import RopeTable
from model.nets.rows import PlainRows

CPU = torch.device("cpu")
BLOCK, BLOCKS, POSITIONS = 4, 8, 100
#: One step of the type at 1, and half of one.
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=lambda one: one.name)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TokenOpsLibrary:
    target: InstructionSet = request.param
    if target not in supported():
        pytest.skip(f"this CPU has no {target.name}")
    try:
        return load_library(TokenOpsLibrary, target, tmp_path_factory.mktemp("kernels"))
    except KernelUnavailable as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Case:
    """Sizes, and what they are filled with."""

    tokens: int
    hidden: int
    inner: int
    group: int
    kv_heads: int
    head_dim: int
    normed: bool
    seed: int

    @property
    def config(self) -> ModelConfig:
        return parse_config(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": self.hidden,
                "intermediate_size": self.inner,
                "num_hidden_layers": 1,
                "num_attention_heads": self.group * self.kv_heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
                "vocab_size": 8,
                "max_position_embeddings": POSITIONS,
            }
        )

    def random(self, name: int, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed + name))
        return values.bfloat16().half()  # exact in every type

    @property
    def positions(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(POSITIONS, (self.tokens,), generator=generator)

    @property
    def rows(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        where = torch.randperm(BLOCK * BLOCKS, generator=generator)[: self.tokens].numpy()
        return torch.from_numpy(self.pool().rows_of(where // BLOCK, where % BLOCK))

    def pool(self) -> KvPool:
        return KvPool(
            layers=1,
            num_blocks=BLOCKS,
            block_size=BLOCK,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            device=CPU,
        )


cases = st.builds(
    Case,
    tokens=st.integers(1, 20),
    hidden=st.integers(1, 70),
    inner=st.integers(1, 70),
    group=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 40).map(lambda half: 2 * half),
    normed=st.booleans(),
    seed=st.integers(0, 2**31),
)


def results(
    ops: TokenOps, case: Case, pool: KvPool, dtype: torch.dtype, *, scale: float = 1
) -> dict[str, Tensor]:
    """What every function gives."""
    c = case.config
    x = case.random(1, case.tokens, case.hidden).to(dtype)
    y = scale * case.random(2, case.tokens, case.hidden).to(dtype)
    weight = case.random(3, case.hidden).to(dtype)
    gate_up = scale * case.random(4, case.tokens, 2 * case.inner).to(dtype)
    heads = c.heads + c.kv_heads
    qkv = case.random(5, case.tokens, (heads + c.kv_heads) * case.head_dim).to(dtype)
    qk_norm = case.random(6, heads, case.head_dim).to(dtype) if case.normed else None
    ops.begin(case.positions, case.rows)
    found = {"norm": ops.norm(x, weight).clone()}
    found["add_norm"] = ops.add_norm(x, y, weight)
    found["sum"] = x
    found["gate"] = ops.gate(gate_up)
    found["q"] = ops.place(0, qkv, qk_norm)
    found["cache"] = pool.tensor[0]
    found["peaks"] = ops.peaks()
    return found


def by_torch(case: Case, dtype: torch.dtype, *, scale: float = 1) -> dict[str, Tensor]:
    """In ``dtype``; with float64 the angles are as they are, in float32."""
    pool = case.pool()
    rope = RopeTable(case.config.rope, case.head_dim, POSITIONS, CPU)
    ops = TorchOps(case.config, rope, pool, PlainRows())
    return results(ops, case, pool, dtype, scale=scale)


def by_kernel(
    library: TokenOpsLibrary,
    case: Case,
    dtype: torch.dtype,
    *,
    scale: float = 1,
    threads: int = 1,
) -> dict[str, Tensor]:
    pool = case.pool()
    rope = RopeTable(case.config.rope, case.head_dim, POSITIONS, CPU)
    ops = KernelOps(library, case.config, rope, pool, dtype=dtype, threads=threads)
    return results(ops, case, pool, dtype, scale=scale)


@settings(max_examples=30, deadline=None)
@given(cases, st.sampled_from([1e-3, 1.0, 30.0]), st.sampled_from(list(EPSILON)))
def test_as_torch_in_float64(
    library: TokenOpsLibrary, case: Case, scale: float, dtype: torch.dtype
) -> None:
    """Within two roundings of the type, and two of FP16 in the cache."""
    exact = by_torch(case, torch.float64, scale=scale)
    for name, found in by_kernel(library, case, dtype, scale=scale).items():
        expected = exact[name].double()
        steps = 2 * EPSILON[torch.float16 if name == "cache" else dtype] + 2 * EPSILON[dtype]
        # Sums of products: the terms may be larger than what is left of them.
        bound = steps * (expected.abs() + expected.abs().amax(-1, keepdim=True))
        assert found.dtype == (torch.float16 if name == "cache" else found.dtype)
        assert bool(((found.double() - expected).abs() <= bound + 1e-7).all()), name


@settings(max_examples=15, deadline=None)
@given(cases, st.sampled_from(list(EPSILON)), st.integers(0, 100))
def test_a_row_is_the_same_bits_wherever_it_stands(
    library: TokenOpsLibrary, case: Case, dtype: torch.dtype, first: int
) -> None:
    """Alone, and with other rows before it."""
    c, first = case.config, first % case.tokens
    pool = case.pool()
    rope = RopeTable(c.rope, case.head_dim, POSITIONS, CPU)
    ops = KernelOps(library, c, rope, pool, dtype=dtype, threads=1)
    x, y = (case.random(i, case.tokens, case.hidden).to(dtype) for i in (1, 2))
    weight = case.random(3, case.hidden).to(dtype)
    gate_up = case.random(4, case.tokens, 2 * case.inner).to(dtype)
    qkv = case.random(5, case.tokens, (c.heads + 2 * c.kv_heads) * case.head_dim).to(dtype)
    places = case.rows.view(2, -1)

    def rows(some: slice) -> list[bytes]:
        ops.begin(case.positions[some], places[:, some].flatten())
        sums = x[some].clone()
        found = [ops.add_norm(sums, y[some], weight).clone(), sums]
        found += [ops.gate(gate_up[some]).clone(), ops.place(0, qkv[some], None).clone()]
        stored = pool.tensor.flatten(0, 3)[places[:, some].flatten()]
        found += [ops.peaks().clone()[0], *stored.chunk(2)]
        return [one.view(torch.uint8).numpy().tobytes() for one in (f[-1:] for f in found)]

    assert rows(slice(first, first + 1)) == rows(slice(0, first + 1))


def test_two_threads_give_the_same_bits(library: TokenOpsLibrary) -> None:
    case = Case(BLOCK * BLOCKS, 4160, 70, 2, 2, 40, True, 3)
    one, two = (by_kernel(library, case, torch.bfloat16, threads=threads) for threads in (1, 2))
    for name, found in two.items():
        assert torch.equal(found, one[name]), name


def store(library: TokenOpsLibrary, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the cache makes of values [n], as V, and the peak that each token had."""
    case = Case(len(values), 2, 2, 1, 1, 2, False, 0)
    pool = KvPool(
        layers=1, num_blocks=len(values), block_size=1, kv_heads=1, head_dim=2, device=CPU
    )
    rope = RopeTable(case.config.rope, 2, 1, CPU)
    ops = KernelOps(library, case.config, rope, pool, dtype=values.dtype, threads=1)
    keys = torch.arange(len(values)) * 2
    ops.begin(torch.zeros(len(values), dtype=torch.int64), torch.cat((keys, keys + 1)))
    qkv = torch.zeros(len(values), 6, dtype=values.dtype)
    qkv[:, 4], qkv[:, 5] = values, -values
    ops.place(0, qkv, None)
    stored = pool.tensor[0, :, 1, 0, 0]
    assert torch.equal(stored[:, 1].nan_to_num(7), -stored[:, 0].nan_to_num(-7))
    return stored[:, 0], ops.peaks()[0]


def test_values_are_rounded_as_torch_rounds(library: TokenOpsLibrary) -> None:
    """Every bfloat16; in float32 every FP16, the ties between two, and what is next to those."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    narrow = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    ties = (narrow[1:] + narrow[:-1]) / 2
    limit = torch.tensor([FP16_LIMIT, FP16_LIMIT - 2**-8, 65536.0, 1e-38, math.inf, math.nan])
    near = [torch.nextafter(ties, torch.tensor(side)) for side in (0.0, math.inf)]
    for values in (every.view(torch.bfloat16), torch.cat((narrow, ties, *near, limit))):
        stored, peaks = store(library, values)
        expected = values.to(torch.float16)
        same = stored.view(torch.int16) == expected.view(torch.int16)
        assert bool((same | (stored.isnan() & expected.isnan())).all())
        assert torch.equal(peaks.nan_to_num(-1), values.float().abs().nan_to_num(-1))
        assert torch.equal(peaks < FP16_LIMIT, stored.isfinite())


def test_a_nan_among_others_is_the_peak(library: TokenOpsLibrary) -> None:
    case = Case(3, 8, 8, 1, 2, 40, False, 1)
    pool, rope = case.pool(), RopeTable(case.config.rope, 40, POSITIONS, CPU)
    ops = KernelOps(library, case.config, rope, pool, dtype=torch.float32, threads=1)
    for place in range(2 * 40, 6 * 40):
        qkv = torch.ones(3, 6 * 40)
        qkv[1, place] = math.nan
        ops.begin(case.positions, case.rows)
        ops.place(0, qkv, None)
        assert ops.peaks().isnan().tolist() == [[False, True, False]]


def test_the_gate_far_from_zero(library: TokenOpsLibrary) -> None:
    case = Case(1, 8, 6, 1, 1, 2, False, 0)
    rope = RopeTable(case.config.rope, 2, POSITIONS, CPU)
    ops = KernelOps(library, case.config, rope, case.pool(), dtype=torch.float32, threads=1)
    ops.begin(case.positions, case.rows)
    gates = torch.tensor([[-1e30, -90.0, -20.0, 20.0, 90.0, 1e30]])
    found = ops.gate(torch.cat((gates, torch.ones(1, 6)), -1))
    assert torch.allclose(found.double(), torch.nn.functional.silu(gates.double()), atol=1e-7)


def test_it_refuses_what_would_write_elsewhere(library: TokenOpsLibrary) -> None:
    case = Case(2, 8, 8, 1, 1, 2, False, 0)
    rope = RopeTable(case.config.rope, 2, POSITIONS, CPU)
    ops = KernelOps(library, case.config, rope, case.pool(), dtype=torch.float32, threads=1)
    rows = BLOCK * BLOCKS * 2
    for positions, places, message in (
        ([0, POSITIONS], [0, 1, 4, 5], f"position {POSITIONS} is outside 0 .. {POSITIONS - 1}"),
        ([-1, 0], [0, 1, 4, 5], "position -1"),
        ([0, 1], [0, rows, 4, rows + 4], f"row of the pool {rows} is outside 0 .. {rows - 1}"),
        ([0, 1], [0, -1, 4, 3], "row of the pool -1"),
    ):
        with pytest.raises(IndexError, match=message):
            ops.begin(torch.tensor(positions), torch.tensor(places))
