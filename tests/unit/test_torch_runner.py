"""The runner as the engine sees it: steps, layers announced, failures of single sequences."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.errors import ContextLengthExceeded, InternalError, InvalidRequest, KvOverflow
from baton.sampling import SamplingSpec
from baton.settings import PrefillSettings
from model.engine.plan import Sample, StepPlan
from model.engine.runner import Runner
from model.engine.torch_runner import load_runner
from model.sampling.sampler import sample as draw_next
from model.worker.loading import load_model
from tests.reference import make_checkpoint
from tests.runners import GREEDY, Driver, Logits

HOT = 7  # a token whose value in layer 0 is made to overflow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only token HOT has anything in dimension 0, which layer 0's values blow up."""
    path = make_checkpoint("llama2", tmp_path_factory.mktemp("overflow"))
    tensors = load_file(path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, 0] = 0
    embedding[HOT, 0] = 1
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = 1e6
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def argmax(logits: Logits, sample: Sample) -> int:
    return int(logits.argmax())


def test_it_is_a_runner(checkpoint: Path) -> None:
    runner: Runner = load_runner(checkpoint, sampler=argmax, num_blocks=5, block_size=4)
    kv = runner.compatibility
    assert (kv.layers, kv.kv_heads, kv.head_size, kv.block_size) == (3, 2, 10, 4)
    assert runner.num_blocks == 5
    assert runner.store.block_bytes == kv.block_bytes
    assert runner.run(StepPlan(9, ()), lambda layer: None).tokens == {}
    runner.close()


def test_numerics_id_tells_what_changes_bits(checkpoint: Path) -> None:
    def identify(**options: object) -> str:
        return Driver.load(checkpoint, **options).runner.numerics_id

    ids = {
        identify(),
        identify(deterministic=True),
        identify(dtype=torch.bfloat16),
        identify(block_size=8),
        identify(threads=2),
        identify(attention="kernel"),
        identify(attention="torch"),
    }
    assert len(ids) == 6
    assert identify() in ids
    assert torch.__version__ in identify()


def test_quantised_weights_are_another_function_of_the_same_kv(tmp_path: Path) -> None:
    path = make_checkpoint("qwen2", tmp_path, hidden_size=96, intermediate_size=192)
    drivers = [Driver.load(path, quantize=quantize) for quantize in (None, "int8", "int4")]
    ids = [driver.runner.numerics_id for driver in drivers]
    assert len(set(ids)) == 3 and "; int8" in ids[1] and "; int4" in ids[2]
    assert len({driver.runner.compatibility for driver in drivers}) == 1
    exact, int8, int4 = (driver.prefill(0, list(range(40))) for driver in drivers)
    worst = np.abs(exact).max()
    assert 0 < np.abs(int8 - exact).max() < 0.1 * worst
    assert np.abs(int4 - exact).max() > 0


def test_the_pool_is_sized_by_memory(checkpoint: Path) -> None:
    runner = load_runner(checkpoint, sampler=argmax, kv_memory_bytes=100_000, block_size=16)
    assert runner.num_blocks == 100_000 // (3 * runner.compatibility.block_bytes)
    with pytest.raises(ValueError, match=r"10 bytes for KV \(--kv-memory-gib\) do not hold"):
        load_runner(checkpoint, sampler=argmax, kv_memory_bytes=10)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = PrefillSettings(model="m", device="cuda:2")
    for count, said in ((0, "finds no GPU here"), (2, "finds 2 from cuda:0 on")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        with pytest.raises(ValueError, match=f"--device cuda:2: torch .* {said}"):
            load_model(asked, print)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_with_others_or_alone(checkpoint: Path, dtype: torch.dtype) -> None:
    """Promise C: prefill and decode in one pack give what each gives alone, up to rounding."""
    together, apart = (Driver.load(checkpoint, dtype=dtype) for _ in range(2))
    prompts = {seq: [(seq * 31 + i * 7) % 250 for i in range(5 + 9 * seq)] for seq in range(4)}
    found = together.step(*(together.piece(s, p, sample=True) for s, p in prompts.items()))
    found |= together.step(
        together.piece(0, [1], sample=True),
        together.piece(1, [2, 3, 4], sample=True),
        together.piece(2, [5], sample=True),
    )
    more = {0: [1], 1: [2, 3, 4], 2: [5], 3: []}
    for seq, prompt in prompts.items():
        expected = apart.prefill(seq, prompt + more[seq])
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert np.abs(found[seq] - expected).max() < tolerance * np.abs(expected).max()


def test_layers_are_announced_in_order_when_their_kv_is_there(checkpoint: Path) -> None:
    driver = Driver.load(checkpoint, block_size=8)
    piece = driver.piece(0, list(range(20)), sample=False, export=True)
    seen: list[list[bytes]] = []

    def on_layer(layer: int) -> None:
        assert layer == len(seen)
        views = asyncio.run(driver.runner.store.read(layer, piece.block_table))
        seen.append([bytes(view) for view in views])

    result = driver.runner.run(StepPlan(1, (piece,)), on_layer)
    assert not result.errors and not result.tokens and result.compute_s > 0
    assert len(seen) == 3
    for layer, blocks in enumerate(seen):
        after = asyncio.run(driver.runner.store.read(layer, piece.block_table))
        assert blocks == [bytes(view) for view in after]
        values = np.frombuffer(blocks[0], dtype=np.float16).reshape(2, 8, 2, 10)
        assert np.abs(values).min(axis=(0, 2, 3)).all(), "every position of the block is written"


@pytest.mark.parametrize("deterministic", [False, True])
def test_kv_handed_over_as_bytes_continues_bitwise(checkpoint: Path, deterministic: bool) -> None:
    here, there = (Driver.load(checkpoint, deterministic=deterministic) for _ in range(2))
    prompt = list(range(40))
    here.prefill(0, prompt)
    sent = here.piece(0, [99], sample=True)
    received = there.piece(0, prompt, sample=False)
    for layer in range(3):
        blocks = asyncio.run(here.runner.store.read(layer, sent.block_table))
        data = memoryview(b"".join(blocks))
        copied = memoryview(bytearray(len(data)))
        asyncio.run(here.runner.store.read_into(layer, sent.block_table, copied))
        assert copied == data
        asyncio.run(there.runner.store.write(layer, received.block_table, data))
    expected = here.step(sent)[0]
    assert there.decode({0: 99})[0].tobytes() == expected.tobytes()


def test_the_store_refuses_what_does_not_fit(checkpoint: Path) -> None:
    store = Driver.load(checkpoint, num_blocks=4).runner.store
    wrong = memoryview(bytes(store.block_bytes + 1))
    with pytest.raises(ValueError, match=f"{store.block_bytes + 1} bytes for 1 blocks"):
        asyncio.run(store.write(0, [1], wrong))
    with pytest.raises(ValueError, match=r"layer 3 is outside 0 \.\. 2"):
        asyncio.run(store.read(3, [0]))
    with pytest.raises(ValueError, match=f"{store.block_bytes + 1} bytes for 1 blocks"):
        asyncio.run(store.read_into(0, [1], memoryview(bytearray(wrong))))
    for block in (-1, 4):
        with pytest.raises(ValueError, match=rf"block {block} is outside 0 \.\. 3"):
            asyncio.run(store.write(0, [block], wrong[:-1]))


@pytest.mark.parametrize("deterministic", [False, True])
def test_kv_overflow_fails_its_sequence_alone(overflowing: Path, deterministic: bool) -> None:
    driver = Driver.load(overflowing, deterministic=deterministic)
    clean = Driver.load(overflowing, deterministic=deterministic)
    sound = driver.piece(1, [1, 2, 3], sample=True)
    result = driver.run(
        driver.piece(0, [5, 6, HOT, 8], sample=True),
        sound,
        driver.piece(2, [HOT], sample=False),
    )
    assert set(result.errors) == {0, 2} and set(result.tokens) == {1}
    for error in result.errors.values():
        assert isinstance(error, KvOverflow) and not error.retryable
    assert "in layer 0 at position 2 does not fit" in result.errors[0].message
    assert "magnitude 4.4373e+06" in result.errors[0].message
    assert result.tokens[1] == int(clean.prefill(1, [1, 2, 3]).argmax())


def test_a_slice_that_cannot_be_packed_fails_alone(checkpoint: Path) -> None:
    driver = Driver.load(checkpoint, num_blocks=8, block_size=4)
    assert driver.runner.max_positions == 32
    result = driver.run(
        driver.piece(0, [1, 260], sample=True),
        driver.piece(1, [1, 2], sample=True),
        driver.piece(2, [-1], sample=False),
    )
    assert set(result.tokens) == {1}
    assert all(isinstance(error, InvalidRequest) for error in result.errors.values())
    assert "token id 260 is outside the vocabulary 0 .. 259" in result.errors[0].message
    too_long = Driver.load(checkpoint, num_blocks=8, block_size=4)
    piece = too_long.piece(0, list(range(32)), sample=True)
    beyond = type(piece)(0, [1], 32, (*piece.block_table, 0), piece.sample)
    result = too_long.run(beyond)
    assert isinstance(result.errors[0], ContextLengthExceeded)
    assert "33 tokens, but context and pool hold 32" in result.errors[0].message


def test_what_the_sampler_says_fails_one_sequence(checkpoint: Path) -> None:
    def sampler(logits: Logits, sample: Sample) -> int:
        assert logits.dtype == np.float32 and logits.shape == (260,)
        if sample.choice_index:
            raise InvalidRequest("nothing is left to draw from")
        return 42

    runner = load_runner(checkpoint, sampler=sampler, num_blocks=8)
    driver = Driver(runner, [])
    good = driver.piece(0, [1], sample=True)
    bad = driver.piece(1, [1], sample=True)
    bad = type(bad)(1, [1], 0, bad.block_table, Sample(GREEDY, [1], (), choice_index=1))
    result = runner.run(StepPlan(0, (bad, good)), lambda layer: None)
    assert result.tokens == {0: 42} and isinstance(result.errors[1], InvalidRequest)


def test_logits_that_are_not_finite_are_an_error_not_a_token(tmp_path: Path) -> None:
    path = make_checkpoint("llama2", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"][:] = 3e38
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    driver = Driver(load_runner(path, sampler=draw_next, num_blocks=8), [])
    result = driver.run(driver.piece(0, [1, 2], sample=True))
    assert isinstance(result.errors[0], InternalError)


def test_bits_do_not_depend_on_the_thread_that_runs(checkpoint: Path) -> None:
    driver = Driver.load(checkpoint, deterministic=True, threads=2)
    expected = driver.prefill(0, list(range(50)))
    found: list[Logits] = []
    thread = threading.Thread(target=lambda: found.append(driver.prefill(1, list(range(50)))))
    thread.start()
    thread.join()
    assert found[0].tobytes() == expected.tobytes()
    torch.set_num_threads(1)


def test_copies_are_made_of_what_was_there_before_the_step(checkpoint: Path) -> None:
    """One sequence goes on in its last block, two in copies of it, in the same step."""
    prompt = list(range(20))
    together = Driver.load(checkpoint, deterministic=True)
    together.prefill(0, prompt)
    together.fork(1, 0)
    together.fork(2, 0)
    tokens = {0: 5, 1: 6, 2: 7}
    found = together.decode(tokens)
    for seq, token in tokens.items():
        alone = Driver.load(checkpoint, deterministic=True)
        alone.prefill(0, prompt)
        assert np.array_equal(found[seq], alone.decode({0: token})[0])


def test_choices_are_drawn_from_the_same_logits(checkpoint: Path) -> None:
    spec = SamplingSpec(temperature=1.0, seed=1)
    driver = Driver.load(checkpoint)
    piece = driver.piece(0, [1, 2, 3], sample=True)
    draws = tuple((9 + choice, Sample(spec, [1, 2, 3], (), choice)) for choice in range(3))
    runner = load_runner(checkpoint, sampler=draw_next, num_blocks=64, block_size=16, threads=1)
    plan = StepPlan(1, (replace(piece, sample=None, draws=draws),))
    found = runner.run(plan, lambda layer: None).tokens
    logits = driver.step(piece)[0]
    assert found == {seq_id: draw_next(logits, asked) for seq_id, asked in draws}
