"""How much a decode worker keeps for a gateway that reads late."""

from __future__ import annotations

from baton.generation import AttemptKey
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
