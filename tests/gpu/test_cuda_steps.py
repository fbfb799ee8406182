"""Whole steps against the plain runner on the CPU: captured and not, on every way to attend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.errors import KvOverflow
from baton.identity import CompatibilityClass
from baton.sampling import SamplingSpec
from baton.settings import AttentionChoice, Quantize
from model.cache.cuda_store import CudaStore
from model.cache.pool import KvPool
from model.cache.store import HostStore
from model.cuda.buckets import bucket_sizes
from model.cuda.choice import WAYS
from model.cuda.paged import AttentionShape
from model.engine.plan import Sample, Slice, StepPlan, StepResult
from model.engine.runner import LayerListener
from model.nets.config import load_config
from model.sampling.sampler import sample as draw_next
from model.weights.loader import load_weights
from tests.gpu.devices import DEVICE, HAS_CUDA, needs_triton
from tests.reference import FAMILIES, make_checkpoint
from tests.runners import Driver, Logits

pytestmark = needs_triton
LAYERS, SIZE, BLOCKS = 3, 16, 64
PROMPT = [(i * 37) % 256 for i in range(70)]
#: Sizes that every library has kernels for.
EVEN = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
MOST = 10 if HAS_CUDA else 5


class Steps:
    """CudaSteps as a Driver's runner, on DEVICE."""

    def __init__(
        self,
        path: Path,
        sampler: object = draw_next,
        *,
        way: AttentionChoice = "kernel",
        graph_rows: int = MOST,
        dtype: torch.dtype = torch.float32,
        quantize: Quantize | None = None,
    ) -> None:
        from model.cuda.steps import CudaSteps

        config = load_config(path)
        self.num_blocks = BLOCKS
        self.compatibility = CompatibilityClass(
            "revision", config.layers, config.kv_heads, config.head_dim, SIZE
        )
        self.pool = KvPool(
            layers=config.layers,
            num_blocks=BLOCKS,
            block_size=SIZE,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            device=DEVICE,
            spare=1,
        )
        host = self.pool.host
        self.store = CudaStore(self.pool) if host is None else HostStore(host)
        shape = AttentionShape(
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            block_size=SIZE,
            windows=config.windows,
            max_positions=512,
            dtype=dtype,
            device=DEVICE,
        )
        if refusal := WAYS[way].refusal(shape):
            pytest.skip(refusal)
        weights = load_weights(path, config, dtype=dtype, device=DEVICE, quantize=quantize)
        self._steps = CudaSteps(
            config,
            weights,
            self.pool,
            self.store,
            WAYS[way].make(shape),
            sampler,  # type: ignore[arg-type]
            max_positions=512,
            graph_rows=graph_rows,
        )

    @torch.inference_mode()
    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        drawn = self._steps.run(plan.slices, on_layer)
        return StepResult(plan.step, drawn.tokens, drawn.errors, logprobs=drawn.logprobs)

    def close(self) -> None:
        if isinstance(self.store, CudaStore):
            self.store.close()


@contextmanager
def driver(path: Path, **options: object) -> Iterator[Driver]:
    seen: list[Logits] = []

    def sampler(logits: Logits, sample: Sample) -> int:
        seen.append(logits.copy())
        return int(logits.argmax())

    runner = Steps(path, sampler, **options)  # type: ignore[arg-type]
    yield Driver(runner, seen)  # type: ignore[arg-type]
    runner.close()


def close(found: Logits, expected: Logits, tolerance: float = 5e-3) -> None:
    """Attention rounds q and its weights to FP16."""
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path)
    here = Driver.load(path, attention="torch")
    with driver(path) as there:
        close(there.prefill(0, PROMPT, chunk=32), here.prefill(0, PROMPT))
        for token in (5, 6):
            close(there.decode({0: token})[0], here.decode({0: token})[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_way_to_attend(way: AttentionChoice, dtype: torch.dtype, tmp_path: Path) -> None:
    path = make_checkpoint("mistral", tmp_path, **EVEN)
    here = Driver.load(path, attention="torch")
    tolerance = 5e-3 if dtype == torch.float32 else 0.1
    with driver(path, way=way, dtype=dtype) as there:
        for side in (here, there):
            side.prefill(1, PROMPT[:20])
        found = there.step(there.piece(0, PROMPT, sample=True), there.piece(1, [3], sample=True))
        expected = here.step(here.piece(0, PROMPT, sample=True), here.piece(1, [3], sample=True))
        for token in (5, 6):
            found |= there.decode({0: token, 1: token})
            expected |= here.decode({0: token, 1: token})
        for seq in (0, 1):
            close(found[seq], expected[seq], tolerance)


def test_int8(tmp_path: Path) -> None:
    path = make_checkpoint("qwen2", tmp_path, hidden_size=96, intermediate_size=192)
    here = Driver.load(path, attention="torch", quantize="int8")
    with driver(path, quantize="int8") as there:
        close(there.prefill(0, PROMPT), here.prefill(0, PROMPT), 1e-2)
        close(there.decode({0: 5})[0], here.decode({0: 5})[0], 1e-2)


def test_every_batch_size(checkpoint: Path) -> None:
    """From one sequence to more than are captured; and back, over what larger ones left behind."""
    here = Driver.load(checkpoint, attention="torch")
    with driver(checkpoint) as there:
        for seq in range(MOST + 1):
            for side in (here, there):
                side.prefill(seq, PROMPT[seq : seq + 3 + 5 * seq])
        for count in (*range(1, MOST + 2), *range(MOST, 0, -1)):
            tokens = {seq: 7 * count + seq for seq in range(count)}
            found, expected = there.decode(tokens), here.decode(tokens)
            for seq in tokens:
                close(found[seq], expected[seq])


def test_captured_or_not_is_the_same(checkpoint: Path) -> None:
    with driver(checkpoint) as captured, driver(checkpoint, graph_rows=0) as direct:
        for side in (captured, direct):
            side.prefill(0, PROMPT)
            side.prefill(1, PROMPT[:5])
        for token in range(20):  # over the border of a block
            tokens = {0: token, 1: token + 1}
            found, expected = captured.decode(tokens), direct.decode(tokens)
            for seq in tokens:
                close(found[seq], expected[seq], 1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_fill_up_write_nowhere_but_in_the_spare_block(
    checkpoint: Path, count: int
) -> None:
    filled_up = count not in bucket_sizes(MOST)
    with driver(checkpoint) as there:
        pool = there.runner.pool  # type: ignore[attr-defined]
        for seq in range(count):
            there.prefill(seq, PROMPT[seq : seq + 9])
        before = pool.tensor.clone()
        slices = [there.piece(seq, [seq], sample=True) for seq in range(count)]
        assert not there.run(*slices).errors
        assert bool(pool.tensor[:, BLOCKS].any()) == (filled_up or HAS_CUDA)  # captures write there
        changed = (pool.tensor != before).any(dim=(0, 2, 4, 5))  # [blocks, places]
        changed[BLOCKS] = False
        expected = torch.zeros_like(changed)
        for piece in slices:
            expected[piece.block_table[piece.start // SIZE], piece.start % SIZE] = True
        assert torch.equal(changed, expected)


def test_layers_are_announced_in_order_however_a_step_is_computed(checkpoint: Path) -> None:
    with driver(checkpoint) as there:
        for piece in (
            there.piece(0, PROMPT, sample=False, export=True),
            there.piece(0, [1], sample=True),
            there.piece(0, [1], sample=True, export=True),
        ):
            seen: list[int] = []
            result = there.runner.run(StepPlan(1, (piece,)), seen.append)
            assert seen == list(range(LAYERS)) and not result.errors


def test_kv_overflow_fails_its_sequence_alone(tmp_path: Path) -> None:
    hot = 7
    path = make_checkpoint("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 0
    tensors["model.embed_tokens.weight"][hot, 0] = 1
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = 1e6
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with driver(path) as there:
        there.prefill(0, [1, 2, 3])
        there.prefill(1, [1, 2, 3])
        sound = there.piece(0, [4], sample=True)
        result = there.run(sound, there.piece(1, [hot], sample=True))  # captured
        assert set(result.tokens) == {0} and isinstance(result.errors[1], KvOverflow)
        assert "in layer 0 at position 3 does not fit" in result.errors[1].message
        result = there.run(
            there.piece(0, [5], sample=True), there.piece(2, [5, hot, 6], sample=True)
        )
        assert set(result.tokens) == {0} and isinstance(result.errors[2], KvOverflow)
        assert "in layer 0 at position 1 does not fit" in result.errors[2].message


SPECS = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "seed": 6},
    {"temperature": 1.0, "min_tokens": 5, "max_tokens": 9, "eos_ids": (3,), "seed": 7},
)


def sampled(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """The slices, each asking in another way."""
    return tuple(
        Slice(
            piece.seq_id,
            piece.token_ids,
            piece.start,
            piece.block_table,
            Sample(SamplingSpec(**SPECS[piece.seq_id]), PROMPT[:3], PROMPT[3:6]),  # type: ignore[arg-type]
        )
        for piece in slices
    )


def test_tokens_are_those_of_the_host_s_sampler(checkpoint: Path) -> None:
    runner = Steps(checkpoint)
    there = Driver(runner, [])  # type: ignore[arg-type]
    here = Driver.load(checkpoint, attention="torch")
    expected: dict[int, int] = {}
    for turn in range(3):
        given = {seq: PROMPT[: seq + 2] if turn == 0 else [turn + seq] for seq in range(len(SPECS))}
        wanted = sampled([there.piece(seq, ids, sample=True) for seq, ids in given.items()])
        logits = here.step(*(here.piece(seq, ids, sample=True) for seq, ids in given.items()))
        for piece in wanted:
            assert piece.sample is not None
            expected[piece.seq_id] = draw_next(logits[piece.seq_id], piece.sample)
        assert runner.run(StepPlan(turn, wanted), lambda layer: None).tokens == expected
    runner.close()


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("way", WAYS)
def test_the_host_waits_once(way: AttentionChoice, tmp_path: Path) -> None:
    """Nothing but the one wait for the step's end: torch would raise at any other."""
    runner = Steps(make_checkpoint("llama3", tmp_path, **EVEN), way=way)
    there = Driver(runner, [])  # type: ignore[arg-type]
    try:
        for turn in range(6):
            given = {seq: PROMPT if turn % 3 == 0 else [turn] for seq in range(len(SPECS))}
            pieces = sampled([there.piece(seq, ids, sample=True) for seq, ids in given.items()])
            if turn > 2:  # by then buffers have grown and kernels are loaded
                torch.cuda.set_sync_debug_mode("error")
            assert not runner.run(StepPlan(turn, pieces), lambda layer: None).errors
    finally:
        torch.cuda.set_sync_debug_mode("default")
    runner.close()
