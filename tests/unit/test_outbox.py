"""How much a decode worker keeps for a gateway that reads late."""

from __future__ import annotations

import asyncio

from baton.generation import AttemptKey, Progress
from decode_worker.outbox import Outbox


def test_many_streams_have_more_unsent_than_one_may() -> None:
    outbox = Outbox(limit=10)
    keys = [AttemptKey(f"r{number}", 0, 0) for number in range(5)]
    for index in range(32):
        for key in keys:
            outbox.token(key, index, 7)
            if index:  # by then all have some
                assert not outbox.overflow.is_set()
    outbox.token(keys[0], 32, 7)
    assert outbox.overflow.is_set()


def test_one_stream_has_as_much_as_the_limit() -> None:
    outbox, key = Outbox(limit=100), AttemptKey("r", 0, 0)
    for index in range(100):
        outbox.token(key, index, 7)
    assert not outbox.overflow.is_set()
    outbox.token(key, 100, 7)
    assert outbox.overflow.is_set()


async def test_word_of_how_far_it_is_goes_with_what_is_sent_next() -> None:
    outbox, key = Outbox(limit=100), AttemptKey("r", 0, 0)
    outbox.progress(Progress(key=key, prefill_instance_id="p", computed_tokens=8))
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.progress(Progress(key=key, prefill_instance_id="p", computed_tokens=16))
    outbox.token(key, 0, 7)
    event = await taking
    assert event is not None
    assert [told.computed_tokens for told in event.step.progress] == [16]
    assert [delta.token_ids for delta in event.step.tokens] == [[7]]

    # One that nobody wants to hear any more does not keep the next from going by itself.
    outbox.progress(Progress(key=key, prefill_instance_id="p"))
    outbox.forget(key)
    alone = asyncio.create_task(outbox.take())
    await asyncio.sleep(0.05)
    outbox.progress(Progress(key=key, prefill_instance_id="p", computed_tokens=24))
    event = await alone
    assert event is not None and not event.step.tokens
    assert [told.computed_tokens for told in event.step.progress] == [24]
