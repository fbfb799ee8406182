"""MockRunner: the same request gives the same tokens, and broken KV gives others."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.identity import CompatibilityClass
from baton.sampling import SamplingSpec
from baton.settings import PrefillSettings
from bench import costs
from bench.costs import Costs
from model.engine.events import LayerReady
from model.engine.mock_runner import Answers, CostModel, MockRunner, MockStore, expected_tokens
from model.engine.plan import Sample, Slice, StepPlan
from model.engine.runner import BlockStore, Runner
from model.worker.loading import load_model
from tests.mock_engines import BLOCK, GREEDY, MOCK_CLASS, SteppedEngine, hand_off

PROMPT = tuple(range(100, 111))
SEEDED = SamplingSpec(temperature=0.8, seed=11, max_tokens=8)


def test_no_sequence_is_longer_than_the_model_takes(tmp_path: Path) -> None:
    config = {"vocab_size": 200, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = {"model": str(tmp_path), "mock": True}
    assert load_model(PrefillSettings(**asked, max_model_len=64), print).max_model_len == 64
    with pytest.raises(ValueError, match="--max-model-len 65: the model's context has 64 tokens"):
        load_model(PrefillSettings(**asked, max_model_len=65), print)


def test_stands_behind_the_runner_interface() -> None:
    runner: Runner = MockRunner(MOCK_CLASS, 4)
    store: BlockStore = runner.store
    assert (runner.num_blocks, runner.numerics_id) == (4, "mock")
    assert store.block_bytes == MOCK_CLASS.block_bytes
    runner.close()
    with pytest.raises(ValueError, match="even number"):
        MockRunner(CompatibilityClass("m", 1, 1, 1, 4), 4)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=30).map(tuple),
    st.integers(1, 9),
    st.sampled_from([GREEDY, SEEDED]),
    st.integers(0, 3),
)
def test_any_chunking_gives_the_expected_tokens(
    prompt: tuple[int, ...], chunk: int, spec: SamplingSpec, choice: int
) -> None:
    engine = SteppedEngine(chunk_tokens=chunk)
    seq = engine.submit(prompt, spec, choice_index=choice)
    engine.run_dry()
    expected = expected_tokens(prompt, spec, MOCK_CLASS, choice_index=choice)
    assert engine.tokens(seq) == expected
    assert len(expected) == 8 and all(32 <= token < 127 for token in expected)


def test_wide_rows_agree_too() -> None:
    wide = CompatibilityClass("wide", layers=3, kv_heads=2, head_size=10, block_size=BLOCK)
    runner = MockRunner(wide, 8)
    table = [5, 2, 7]
    sample = Sample(GREEDY, PROMPT, [])
    plan = StepPlan(1, (Slice(1, PROMPT, 0, table, sample),))
    layers: list[int] = []
    result = runner.run(plan, layers.append)
    assert result.tokens[1] == expected_tokens(PROMPT, GREEDY, wide)[0]
    assert layers == [0, 1, 2]


def test_seed_position_and_choice_matter_and_greedy_ignores_them() -> None:
    def ids(choice: int = 0, **change: float) -> list[int]:
        spec = SamplingSpec(**{"temperature": 1.0, "seed": 1, "max_tokens": 12} | change)  # type: ignore[arg-type]
        return expected_tokens(PROMPT, spec, MOCK_CLASS, choice_index=choice)

    assert ids() == ids()
    assert len({tuple(x) for x in (ids(), ids(seed=2), ids(choice=1), ids(temperature=0))}) == 4
    assert ids(temperature=0, seed=5) == ids(choice=1, temperature=0)


@pytest.mark.parametrize(
    ("most", "least", "ignore", "length"), [(9, 0, False, 4), (9, 6, False, 7), (9, 0, True, 9)]
)
def test_answers_end_where_they_are_told(most: int, least: int, ignore: bool, length: int) -> None:
    spec = SamplingSpec(
        temperature=0, max_tokens=most, min_tokens=least, ignore_eos=ignore, eos_ids=(2, 3)
    )
    ids = expected_tokens(PROMPT, spec, MOCK_CLASS, Answers(length=3))
    assert len(ids) == length
    assert (ids[-1] == 2) is not ignore


@pytest.mark.parametrize("position", [0, 5, 10])
@pytest.mark.parametrize("layer", [0, 1])
def test_one_wrong_byte_anywhere_changes_the_output(position: int, layer: int) -> None:
    source, target = SteppedEngine(), SteppedEngine()
    taken = source.reserve(PROMPT, keep=True)
    source.run_dry()
    wanted = target.reserve(PROMPT, receive=True)
    hand_off(source, taken, target, wanted)
    block, offset = wanted.block_table[position // BLOCK], position % BLOCK
    target.runner.store.pool[layer, block].reshape(2, BLOCK, -1)[1, offset, 3] ^= 1
    (first,) = source.tokens(taken.seq_id)
    target.activate(wanted.seq_id, first)
    target.run_dry()
    assert [first, *target.tokens(wanted.seq_id)] != expected_tokens(PROMPT, GREEDY, MOCK_CLASS)


def test_swapped_blocks_change_the_output() -> None:
    source, target = SteppedEngine(), SteppedEngine()
    taken = source.reserve(PROMPT, keep=True)
    source.run_dry()
    wanted = target.reserve(PROMPT, receive=True)
    hand_off(source, taken, target, wanted)
    a, b, *_ = wanted.block_table
    pool = target.runner.store.pool
    pool[:, [a, b]] = pool[:, [b, a]]
    (first,) = source.tokens(taken.seq_id)
    target.activate(wanted.seq_id, first)
    target.run_dry()
    assert [first, *target.tokens(wanted.seq_id)] != expected_tokens(PROMPT, GREEDY, MOCK_CLASS)


def test_time_is_a_cost_model() -> None:
    time = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time[0] += seconds

    cost = CostModel(
        step_s=1.0,
        prefill_token_s=0.1,
        prefill_pair_s=0.02,
        decode_s=0.25,
        context_token_s=0.01,
    )
    runner = MockRunner(MOCK_CLASS, 8, cost=cost, sleep=sleep, clock=lambda: time[0])
    sample = Sample(GREEDY, PROMPT, [])
    plan = StepPlan(1, (Slice(1, (1, 2, 3), 2, [0, 2]), Slice(2, (4,), 3, [1], sample)))
    result = runner.run(plan, lambda _: None)
    assert result.compute_s == pytest.approx(1.0 + 0.3 + 0.02 * (2 + 3 + 4) + 0.25 + 0.04)
    assert sum(slept) == pytest.approx(result.compute_s) and len(slept) == 2


def test_what_the_mock_computes_is_part_of_its_step() -> None:
    ticks, slept = iter((0.0, 0.3, 1.5)), list[float]()
    runner = MockRunner(
        MOCK_CLASS, 8, cost=CostModel(step_s=1.0), sleep=slept.append, clock=lambda: next(ticks)
    )
    runner.run(StepPlan(1, (Slice(1, (1,), 0, [0]),)), lambda _: None)
    assert slept == pytest.approx([0.2, 0.0]), "half a second per layer, as far as it is left"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"decode_s": None}, "decode_s is None"),
        ({"prefill_pair_s": -1e-9}, "prefill_pair_s is -1e-09, but must be seconds"),
        ({"step_s": "NaN"}, "step_s is 'NaN'"),
    ],
)
def test_a_file_of_costs_is_read_or_refused(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    path = tmp_path / "costs.json"
    costs.write(path, Costs(step_s=0.01, decode_s=0.002, prefill_pair_s=1e-7, machine="mine"))
    assert CostModel.read(path) == CostModel(step_s=0.01, decode_s=0.002, prefill_pair_s=1e-7)
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, **change}))
    with pytest.raises(ValueError, match=why):
        CostModel.read(path)
    del said["step_s"]
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="lacks step_s"):
        CostModel.read(path)


def test_announces_each_layer_of_exporting_slices() -> None:
    engine = SteppedEngine()
    seq = engine.submit(PROMPT, keep=True, export=True)
    engine.submit(PROMPT)
    engine.run_dry()
    ready = [(e.layer, e.end) for e in engine.events if isinstance(e, LayerReady)]
    assert ready == [(0, 5), (1, 5), (0, 10), (1, 10), (0, 11), (1, 11)]
    assert {e.seq_id for e in engine.events if isinstance(e, LayerReady)} == {seq}


def test_the_store_moves_bytes_and_refuses_other_lengths() -> None:
    store = MockStore(MOCK_CLASS, 4)
    data = np.arange(2 * store.block_bytes, dtype=np.uint32).astype(np.uint8)

    async def there_and_back() -> bytes:
        await store.write(1, [3, 0], memoryview(data))
        first, second = await store.read(1, [3, 0])
        copied = bytearray(2 * store.block_bytes)
        await store.read_into(1, [3, 0], memoryview(copied))
        assert copied == bytes(first) + bytes(second)
        return bytes(copied)

    assert asyncio.run(there_and_back()) == data.tobytes()
    assert not store.pool[0].any()
    with pytest.raises(ValueError, match=r"63 bytes for 1 blocks"):
        asyncio.run(store.write(0, [0], memoryview(bytes(63))))
