"""What ``baton top`` makes of the feed, before it is on a screen."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from baton import live
from baton.backoff import Backoff
from baton.cli import top
from baton.top import columns
from baton.top.feed import Down, LiveFeed, Said
from baton.top.fleet import Fleet
from baton.top.glass import Glass
from baton.top.palette import PLAIN, TUBES
from baton.top.scene import Scene
from baton.top.streams import LATELY, MOST
from baton.top.window import Window
from tests.feeds import (
    BEGAN,
    decoded,
    ended,
    first_token,
    gateway,
    left,
    placed,
    queued,
    slow,
    snapshot,
    worker,
)


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def scene(clock: Clock, *names: str) -> Scene:
    return Scene(list(names or ("gw",)), clock, lambda: BEGAN)


def texts(scene: Scene) -> list[str]:
    return [note.text for note in scene.notes]


# -- percentiles ----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0.01, 1e6), st.integers(1, 50)), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
)
def test_percentiles_are_within_two_percent(seen: list[tuple[float, int]], share: float) -> None:
    window = Window(60)
    for value, weight in seen:
        window.add(value, 100.0, weight)
    every = sorted(value for value, weight in seen for _ in range(weight))
    below = [v for i, v in enumerate(every, 1) if i >= share * len(every) * (1 - 1e-12)]
    [found] = window.percentiles(share, now=100.0)
    assert found == pytest.approx(below[0], rel=0.02)


def test_percentiles_are_of_the_last_seconds_only() -> None:
    window = Window(60)
    window.add(1000.0, 100.0)
    window.add(10.0, 150.0)
    assert window.percentiles(1.0, now=159.9) == (pytest.approx(1000, rel=0.02),)
    assert window.percentiles(1.0, now=160.0) == (pytest.approx(10, rel=0.02),)
    assert window.percentiles(0.5, 0.99, now=300.0) == (None, None)


# -- workers --------------------------------------------------------------------------------------


def test_who_is_slow_comes_first_and_is_noted_once(clock: Clock) -> None:
    view = scene(clock)
    one, other = worker("01aaaaaa"), worker("02bbbbbb")
    view.hear("gw", snapshot(one, other))
    for said in (slow(other), slow(other, "step 70 ms, others 22 ms"), other):
        view.hear("gw", said)
        [first, _] = sorted(view.workers(), key=columns.by_trouble)
        assert first.name == ("02bbbbbb" if said.verdict else "01aaaaaa")
    assert [note.text.partition(":9001 ")[2] for note in view.notes if "slow" in note.text] == [
        "is slow: step 66 ms, others 22 ms",
        "is no longer slow",
    ]


def test_of_two_gateways_one_that_finds_it_slow_is_enough() -> None:
    fleet, mine = Fleet(), worker("01aaaaaa")
    fleet.snapshot("a", [slow(mine)])
    fleet.snapshot("b", [replace(mine, verdict=live.Verdict(kind="busy", times=9.0, text="x"))])
    assert [view.slow for view in fleet.views()] == [slow(mine).verdict]
    fleet.silence("a")
    assert [(view.slow, view.verdict and view.verdict.kind) for view in fleet.views()] == [
        (None, "busy")
    ]


def test_what_one_gateway_finds_wrong_counts_until_it_is_silent() -> None:
    fleet = Fleet()
    mine = worker("01aaaaaa")
    fleet.snapshot("a", [mine])
    fleet.snapshot("b", [replace(mine, state="out", reason="no beat")])
    assert [view.state for view in fleet.views()] == ["out"]
    fleet.silence("b")
    assert [view.state for view in fleet.views()] == ["healthy"]
    fleet.silence("a")
    [view] = fleet.views()
    assert not view.heard
    # Each comes back, and neither knows the worker any more.
    fleet.snapshot("a", [])
    assert len(fleet.views()) == 1
    fleet.snapshot("b", [])
    assert fleet.views() == []


def test_a_worker_that_connects_and_then_reports_is_one() -> None:
    fleet = Fleet()
    connecting = live.Worker(id=None, at=0.0, address="a:1", state="connecting", reason="")
    fleet.hear("gw", connecting)
    fleet.gone("gw", live.WorkerGone(at=0.0, id=None, address="a:1"))
    fleet.hear("gw", worker("01aaaaaa", address="a:1"))
    assert [view.name for view in fleet.views()] == ["01aaaaaa"]


# -- streams --------------------------------------------------------------------------------------


def progress(name: str, **said: float) -> live.Event:
    shared = {"request": name, "at": BEGAN, "attempt": 0}
    if "bytes" in said:
        whole = {"total_bytes": 100, "layers": 1, "total_layers": 4, "transport": "shm"}
        return live.Kv(**{**shared, **whole, **said})
    return live.Prefill(**{**shared, "worker": "p", "cached": 0, "total": 100, **said})


def test_a_stream_from_its_queue_to_its_end(clock: Clock) -> None:
    view = scene(clock)
    view.hear("gw", snapshot(worker("01aaaaaa")))

    def now(*said: Said) -> tuple[str, float | None]:
        for one in said:
            view.hear("gw", one)
        [stream] = view.streams()
        return stream.phase, stream.share

    assert now(queued("r-1", at=BEGAN - 2)) == ("queued", None)
    assert now(placed("r-1", "01aaaaaa", "02bbbbbb")) == ("prefill", None)
    assert now(progress("r-1", computed=40)) == ("prefill", 0.4)
    assert now(progress("r-1", bytes=10)) == ("prefill", 0.4), "it is still computed"
    assert now(progress("r-1", computed=100), progress("r-1", bytes=60)) == ("kv", 0.6)
    assert now(first_token("r-1", 212.0)) == ("decode", None)
    assert now(decoded("r-1", 31, 44.8, at=BEGAN + 1)) == ("decode", None)
    [stream] = view.streams()
    assert (stream.tokens, stream.ttft_ms, stream.tokens_per_s) == (31, 212.0, 44.8)
    assert view.age(stream) == pytest.approx(2.0)
    assert now(left("r-1", "decode_lost", 31)) == ("again", None)
    assert now(placed("r-1", "03cccccc", attempt=1)) == ("decode", None)
    view.hear("gw", ended("r-1"))
    assert view.streams() == []


def test_latency_is_by_tokens_and_of_streams_from_their_first(clock: Clock) -> None:
    view = scene(clock)
    open_one = live.Request(
        request="old",
        arrived=BEGAN - 60,
        prompt_tokens=5,
        max_tokens=100,
        choices=1,
        phase="decode",
        attempt=0,
        decode="01aaaaaa",
        prefill=None,
        tokens=40,
        ttft_ms=9000.0,
    )
    view.hear("gw", snapshot(requests=[open_one]))
    view.hear("gw", decoded("old", 41, 0.0, at=BEGAN))  # how quick is not known yet
    figures = view.figures()
    assert (figures.ttft_p50, figures.itl_p50) == (None, None)
    view.hear("gw", decoded("old", 51, 10.0, at=BEGAN + 1.0))  # ten tokens, 100 ms each
    view.hear("gw", decoded("old", 52, 0.5, at=BEGAN + 3.0))  # and one after two seconds
    for ttft_ms in (100.0, 200.0, 300.0):
        view.hear("gw", first_token("new", ttft_ms))
    figures = view.figures()
    assert figures.itl_p50 == pytest.approx(100, rel=0.02)
    assert figures.itl_p99 == pytest.approx(2000, rel=0.02)
    assert figures.ttft_p50 == pytest.approx(200, rel=0.02)
    assert view.streams()[0].tokens == 52
    clock.now += LATELY
    assert view.figures().itl_p99 is None


def test_several_prompts_of_a_call_are_one_stream(clock: Clock) -> None:
    view = scene(clock)
    view.hear("gw", snapshot())
    for said in (queued("r-1", prompt_tokens=10), queued("r-1", prompt_tokens=20, choices=2)):
        view.hear("gw", said)
    for choice in range(3):
        view.hear("gw", decoded("r-1", 5, 10.0, at=BEGAN, choice=choice))
    [stream] = view.streams()
    assert (stream.prompt_tokens, stream.choices, stream.tokens) == (30, 3, 15)
    assert stream.tokens_per_s == 30.0
    view.hear("gw", ended("r-1"))
    view.hear("gw", ended("r-1"))
    assert view.streams() == []


def test_however_many_streams_there_are_some_are_followed(clock: Clock) -> None:
    view = scene(clock)
    view.hear("gw", snapshot())
    for number in range(MOST + 10):
        view.hear("gw", queued(f"r-{number}"))
    names = [stream.name for stream in view.streams()]
    assert len(names) == MOST and names[-1] == str(MOST + 9)


# -- notes and alarms -----------------------------------------------------------------------------


def test_what_happens_is_noted(clock: Clock) -> None:
    view = scene(clock)
    one = worker("01aaaaaa")
    view.hear("gw", snapshot(one))
    for said in (
        replace(one, state="suspect", reason="a beat missed"),
        one,
        replace(one, roles=["prefill"]),
        replace(one, roles=["prefill"], draining=True),
        worker("02bbbbbb"),
        live.WorkerGone(at=BEGAN, id="02bbbbbb", address=""),
        live.Worker(id=None, at=BEGAN, address="a:1", state="connecting", reason=""),
        live.WorkerGone(at=BEGAN, id=None, address="a:1"),
        live.Lost(events=37),
    ):
        view.hear("gw", said)
    where = "01aaaaaa at 10.0.0.1:9001"
    assert texts(view) == [
        "gw is there, with 1 worker",
        f"decode {where} is suspect: a beat missed",
        f"decode {where} is healthy",
        f"prefill {where} does prefill now, no longer decode",
        f"prefill {where} is draining",
        "decode 02bbbbbb at 10.0.0.2:9001 has come",
        "decode 02bbbbbb at 10.0.0.2:9001 is gone",
        "gw: we were too slow for 37 events; looking anew",
    ]


def test_what_many_streams_meet_at_once_is_one_note(clock: Clock) -> None:
    view = scene(clock)
    view.hear("gw", snapshot(worker("01aaaaaa")))
    for number in range(40):
        view.hear("gw", queued(f"r-{number}"))
        view.hear("gw", placed(f"r-{number}", "01aaaaaa"))
        view.hear("gw", left(f"r-{number}", "decode_lost"))
    view.hear("gw", ended("r-1", 504, "deadline_exceeded"))
    view.hear("gw", ended("r-2", 499, "client_gone"))
    view.hear("gw", ended("r-3"))
    clock.now += 1
    view.tick()
    assert texts(view)[1:] == [
        "40 streams left 01aaaaaa: decode_lost; going on elsewhere",
        "1 request failed: 504 deadline_exceeded",
        "1 client left",
    ]


def test_a_gateway_that_is_lost_is_an_alarm_until_it_is_back(clock: Clock) -> None:
    view = scene(clock, "a", "b")
    view.hear("a", snapshot(worker("01aaaaaa"), tokens_per_s=100.0, open=2))
    view.hear("b", snapshot(worker("01aaaaaa"), tokens_per_s=50.0, open=3))
    view.hear("b", queued("r-1"))
    assert (view.figures().tokens_per_s, view.figures().open) == (150.0, 5)
    for _ in range(3):  # it is tried again and again, and noted once
        view.hear("b", Down("refused"))
    figures, [alarm] = view.figures(), view.alarms(view.workers())
    assert (figures.heard, figures.gateways, figures.tokens_per_s) == (1, 2, 100.0)
    assert alarm.text == "b cannot be heard: refused"
    assert view.streams() == []
    view.hear("b", snapshot(worker("01aaaaaa")))
    assert view.alarms(view.workers()) == []
    assert texts(view)[2:] == [
        "b cannot be heard: refused; trying again",
        "b is back, with 1 worker",
    ]


def test_throughput_of_every_second_is_kept(clock: Clock) -> None:
    view = scene(clock)
    view.hear("gw", snapshot())
    for rate in range(300):
        clock.now += 1
        view.hear("gw", gateway(tokens_per_s=float(rate)))
        view.tick()
        view.tick()  # twice within a second counts once
    assert list(view.history) == [float(rate) for rate in range(60, 300)]


# -- rows -----------------------------------------------------------------------------------------


def test_rows_fit_a_terminal_of_80_columns() -> None:
    workers = columns.fitting(columns.WORKERS, 80)
    streams = columns.fitting(columns.streams(lambda stream: 1.0), 80)
    for shown in (workers, streams):
        assert sum(column.width + 2 for column in shown) <= 79  # and one for the scrollbar
    assert len(columns.fitting(columns.WORKERS, 200)) > len(workers)


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [
        (columns.short, 812, "812"),
        (columns.short, 9_999, "9,999"),
        (columns.short, 98_120, "98.1k"),
        (columns.short, 999_990, "1.0M"),
        (columns.milliseconds, None, "-"),
        (columns.milliseconds, 22.13, "22.1 ms"),
        (columns.milliseconds, 9_999.0, "9999 ms"),
        (columns.milliseconds, 61_000.0, "61.0 s"),
        (columns.seconds, 4.21, "4.2s"),
        (columns.seconds, 725.0, "12m05"),
        (columns.seconds, 12_060.0, "3h21"),
    ],
)
def test_figures_are_short(shown: Callable[[float | None], str], value: float, text: str) -> None:
    assert shown(value) == text


def test_a_cache_is_a_bar_and_a_share() -> None:
    def shown(**blocks: int) -> str:
        return columns.bar(live.Blocks(**blocks), PLAIN).plain

    assert shown(free=60, cached=20, owned=10, quarantined=10) == "█▒···  20%"
    assert shown(owned=10) == "█████ 100%"
    assert shown() == "-"


# -- an old tube ----------------------------------------------------------------------------------


@given(
    st.lists(
        st.text(st.sampled_from("ab1█ │"), max_size=40).map(lambda text: Segment(text, Style())),
        max_size=5,
    ),
    st.integers(0, 2**32),
)
def test_a_tube_hides_nothing(segments: list[Segment], seed: int) -> None:
    glass = Glass(TUBES["green"].beam, TUBES["green"].faint, random.Random(seed))
    glass.shock()
    strip = Strip(segments)
    [seen] = glass.look([strip], glass.row)
    assert seen.cell_length == strip.cell_length
    for before, after in zip(strip.text, seen.text, strict=True):
        assert before in (after, " ")


def test_noise_fades_and_the_beam_comes_round() -> None:
    glass = Glass(TUBES["amber"].beam, TUBES["amber"].faint, random.Random(1))
    blank = Strip([Segment(" " * 80, Style())])
    assert glass.look([blank], 5)[0].text == blank.text
    glass.shock()
    assert glass.look([blank], 5)[0].text != blank.text
    rows = set()
    for _ in range(24):
        glass.step(24)
        rows.add(glass.row)
    assert rows == set(range(24)) and glass.noise == 0


# -- the feed over HTTP ---------------------------------------------------------------------------


def sse(*events: live.Event) -> str:
    return "".join(f"event: {e.name}\ndata: {live.rendered(e)}\n\n" for e in events)


async def test_a_feed_is_followed_through_what_goes_wrong() -> None:
    met = snapshot(worker("01aaaaaa"))
    answers = iter(
        [
            httpx.Response(404, json={"error": {"message": "GET /live: no such route"}}),
            httpx.ConnectError("connection refused"),
            httpx.Response(200, text="<html>", headers={"content-type": "text/html"}),
            httpx.Response(
                200,
                text="event: of_another_age\ndata: {}\n\n" + sse(met, live.Lost(events=2), met),
                headers={"content-type": "text/event-stream"},
            ),
            httpx.Response(200, text=sse(met), headers={"content-type": "text/event-stream"}),
        ]
    )

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://gw:8001/live"
        answer = next(answers)
        if isinstance(answer, httpx.Response):
            return answer
        raise answer

    heard: list[Said] = []
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        feed = LiveFeed("http://gw:8001/", http, Backoff(0.001, 0.001))
        assert feed.name == "gw:8001"
        async for said in feed.follow():
            heard.append(said)
            if len(heard) == 7:
                break
    whys = [said.why for said in heard if isinstance(said, Down)]
    assert whys[0] == "HTTP 404: GET /live: no such route (is it a gateway with --live off?)"
    assert whys[1] == "connection refused"
    assert "text/html" in whys[2]
    assert whys[3] == "the gateway ended the feed"
    assert heard[3:6] == [met, live.Lost(events=2), met]


# -- the command ----------------------------------------------------------------------------------


def test_it_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert top.main([]) == 1
    assert "this is no terminal; `baton workers` prints a table" in capsys.readouterr().err


def test_it_says_which_extra_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "textual", None)
    assert top.main([]) == 1
    assert "pip install '.[tui]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--url", "localhost:8001"], "'localhost:8001' is no URL like http://127.0.0.1:8001"),
        (["--refresh", "0.01"], "0.01 seconds are too few; at least 0.1"),
        (["--refresh", "soon"], "'soon' is no number of seconds"),
        (["--retro", "blue"], "invalid choice: 'blue'"),
    ],
)
def test_bad_options_are_named(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        top.main(flags)
    assert said in capsys.readouterr().err
