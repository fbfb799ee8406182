"""What a decode worker makes of the cost rule: what it knows, learns and counts."""

from __future__ import annotations

from typing import Any

from baton.settings import DecodeSettings
from decode_worker.prefill_choice import Chooser
from decode_worker.prefill_client import Target
from tests.mock_engines import BLOCK, MOCK_CLASS, SteppedEngine

PROMPT = tuple(range(8 * BLOCK))
TARGET = Target("p:1", "p", queued_tokens=0, prefill_token_s=0.001)
BUSY = Target("p:1", "p", queued_tokens=100_000, prefill_token_s=0.001)


def chooser(engine: SteppedEngine, **settings: Any) -> Chooser:
    decode = DecodeSettings(model="m", **settings)
    compatibility = engine.runner.compatibility
    return Chooser(engine, compatibility, decode, colocated=decode.local_prefill)


def counts(made: Chooser) -> dict[str, int]:
    assert all(
        d.local == (d.reason in ("colocated", "no_target", "cheaper")) for d in made.decisions()
    )
    return {decision.reason: decision.count for decision in made.decisions()}


def test_what_stays_is_queued_at_once() -> None:
    engine = SteppedEngine()
    made = chooser(engine)
    assert made.receives(BUSY) and not made.receives(None)
    reserved = engine.reserve(PROMPT, receive=True)
    assert made.stays(BUSY, reserved)
    assert engine.load().queued_tokens == len(PROMPT)
    away = engine.reserve(PROMPT[::-1], receive=True)
    assert not made.stays(TARGET, away), "one queue is long, the other empty"
    assert engine.load().queued_tokens == len(PROMPT)
    assert counts(made) == {"cheaper": 1, "dearer": 1}
    engine.cancel(away.seq_id)
    engine.run_dry()
    assert engine.check_integrity(idle=True) == []


def test_a_colocated_worker_asks_nobody() -> None:
    engine = SteppedEngine()
    made = chooser(engine, local_prefill=True)
    assert not made.receives(TARGET)
    assert made.stays(TARGET, engine.reserve(PROMPT))
    assert counts(made) == {"colocated": 1}


def test_a_prompt_that_is_cached_whole_needs_a_free_block() -> None:
    engine = SteppedEngine(num_blocks=10)
    made = chooser(engine)
    engine.submit(PROMPT)
    engine.run_dry()
    reserved = engine.reserve(PROMPT, receive=True)
    other = engine.reserve((99,) * (BLOCK + 1), receive=True)
    assert not made.stays(BUSY, reserved)
    engine.cancel(other.seq_id)
    assert made.stays(BUSY, reserved)
    assert engine.load().queued_tokens == BLOCK, "its last block is computed again"
    assert counts(made) == {"no_blocks": 1, "cheaper": 1}
    engine.run_dry()
    assert engine.check_integrity(idle=True) == []


def test_hand_offs_teach_what_they_add() -> None:
    """A prompt queued behind ten tokens here goes there, until transfers prove to be slow."""
    engine = SteppedEngine(64)
    made = chooser(engine)
    engine.submit(tuple(range(500, 510)))
    token_bytes = MOCK_CLASS.layers * MOCK_CLASS.block_bytes // BLOCK
    for tail_s, stays in ((0.0, False), (0.009, False), (0.1, True)):
        made.handed_over(TARGET, nbytes=32 * token_bytes, tail_s=tail_s, hit=0, hit_there=0)
        reserved = engine.reserve(PROMPT, receive=True)
        assert made.stays(TARGET, reserved) is stays
        engine.cancel(reserved.seq_id)


def test_hand_offs_teach_what_is_cached_there() -> None:
    """Until then, as much as here is taken to be cached there."""
    engine = SteppedEngine(64)
    made = chooser(engine)
    engine.submit(PROMPT)
    engine.run_dry()
    engine.submit(tuple(range(500, 510)))
    longer = (*PROMPT, 1, 2, 3)
    for cached_there, stays in ((len(PROMPT), False), (0, True)):
        made.handed_over(TARGET, nbytes=0, tail_s=0.0, hit=len(PROMPT), hit_there=cached_there)
        reserved = engine.reserve(longer, receive=True)
        assert made.stays(TARGET, reserved) is stays
        engine.cancel(reserved.seq_id)


def test_another_instance_is_another_worker() -> None:
    engine = SteppedEngine(64)
    made = chooser(engine)
    engine.submit(tuple(range(500, 510)))
    for name in ["p", *map(str, range(300))]:
        slow = Target("p:1", name, prefill_token_s=0.001)
        made.handed_over(slow, nbytes=10, tail_s=10.0, hit=0, hit_there=0)
    reserved = engine.reserve(PROMPT, receive=True)
    assert not made.stays(TARGET, reserved), "it has been forgotten for newer ones"
    assert made.stays(slow, reserved)
