"""Parts of what is told of requests: events on the wire, gaps, what waits for a slow listener."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import re
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton import live
from gateway.telling.feed import WAITING, Feed
from gateway.telling.gaps import KEPT, Arrivals, Gaps

DOCUMENT = (Path(__file__).parents[2] / "docs" / "live.md").read_text()


def made(kind: type[Any]) -> Any:
    """An event with something in every field."""
    by_type: dict[str, Any] = {
        "int": 7,
        "float": 1.5,
        "bool": True,
        "str": "x",
        "int | None": 3,
        "float | None": None,
        "str | None": "y",
        "list[int]": [0, 1],
        "list[str]": ["decode"],
    }
    by_name: dict[str, Any] = {
        "gateway": lambda: made(live.Gateway),
        "workers": lambda: [made(live.Worker)],
        "requests": lambda: [made(live.Request)],
        "blocks": lambda: live.Blocks(free=1, owned=2),
        "verdict": lambda: live.Verdict(kind="slow", times=2.5, text="x"),
    }
    return kind(
        **{
            one.name: by_name[one.name]() if one.name in by_name else by_type[str(one.type)]
            for one in dataclasses.fields(kind)
        }
    )


@pytest.mark.parametrize("name", live.EVENTS)
def test_events_survive_the_wire(name: str) -> None:
    event = made(live.EVENTS[name])
    data = live.rendered(event)
    assert "\n" not in data and live.parse(name, data) == event
    assert live.parse(name, json.dumps({**json.loads(data), "of_a_later_version": 1})) == event
    assert live.parse("of_a_later_version", data) is None
    with pytest.raises(ValueError, match="has no"):
        live.parse(name, "{}")


@pytest.mark.parametrize("name", live.EVENTS)
def test_every_field_is_documented(name: str) -> None:
    """In the section of its event; what all requests' events have is in one place."""
    section = re.search(rf"^### `{name}`\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/live.md has no section {name}"
    kind = live.EVENTS[name]
    shared = {"request", "at"} if hasattr(made(kind), "request") else set()
    documented = set(re.findall(r'"(\w+)":', re.sub("//.*", "", section[1])))
    for part in (live.Request,) if kind is live.Snapshot else ():
        documented -= {one.name for one in dataclasses.fields(part)} - {"at"}
    if kind is live.Worker:
        for part in (live.Blocks, live.Verdict):
            documented -= {one.name for one in dataclasses.fields(part)}
    assert documented == {one.name for one in dataclasses.fields(kind)} - shared


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=3 * KEPT), st.floats(0, 1))
def test_gaps_are_counted_however_many_there_are(seconds: list[float], share: float) -> None:
    times, arrivals = list(accumulate(seconds, initial=0.0)), Arrivals()
    for at in times:
        arrivals.note(at)
        assert arrivals.last == at
        if at == times[len(times) // 2]:
            assert arrivals.gaps.kept  # whoever asks in between changes nothing
    gaps, seconds = arrivals.gaps, [after - before for before, after in pairwise(times)]
    exact = sorted(seconds)[max(1, math.ceil(share * len(seconds))) - 1]
    assert len(gaps) == len(seconds) and gaps.kept == seconds[:KEPT]
    assert gaps.longest == max(seconds)
    tolerance = 0.0 if len(seconds) <= KEPT else 0.03
    assert gaps.percentile(share) == pytest.approx(exact, rel=tolerance)


def test_gaps_of_several_choices_are_told_of_together() -> None:
    one, other = Gaps(), Gaps()
    one.add([1.0] * 3)
    other.add([5.0] * (KEPT + 44))
    both = Gaps.together([one, other])
    assert len(both) == KEPT + 47 and both.longest == 5.0
    assert both.percentile(0.005) == 1.0 and both.percentile(0.5) == pytest.approx(5.0, rel=0.03)
    assert len(one) == 3


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    feed = Feed()
    watched: list[bool] = []
    feed.on_watched = watched.append
    feed.say(live.WorkerGone(at=0, id=None, address="nobody listens"))
    with feed.listen() as slow:
        for number in range(WAITING + 10):
            feed.say(live.WorkerGone(at=number, id="w", address="w:1"))
        (name, data), *rest = await anext(slow.take())
        assert (name, json.loads(data)) == ("lost", {"events": 10})
        assert [json.loads(data)["at"] for _, data in rest] == list(range(10, WAITING + 10))
    assert watched == [True, False]


async def test_what_comes_soon_after_goes_out_together() -> None:
    feed = Feed()
    with feed.listen() as listener:
        stream = listener.take()
        feed.say(live.Lost(events=1))
        assert len(await anext(stream)) == 1  # at once
        following = asyncio.create_task(anext(stream))
        for number in (2, 3, 4):
            feed.say(live.Lost(events=number))
            await asyncio.sleep(0)
        assert [json.loads(data)["events"] for _, data in await following] == [2, 3, 4]
        await stream.aclose()
