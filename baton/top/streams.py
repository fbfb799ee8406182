"""The open requests of all gateways, and how quick they are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from baton import live
from baton.top.window import Window

#: That are followed at a time: of more, the newest.
MOST = 4096
#: Seconds over which percentiles are taken.
LATELY = 60

#: How an attempt ends that nothing needs to follow.
_WELL = frozenset({"stop", "length", "cancelled"})

Key = tuple[str, str]  #: gateway, request


@dataclass(slots=True)
class Stream:
    """An open request, as it is shown."""

    gateway: str
    request: str
    arrived: float  #: Unix seconds by its gateway's clock
    prompt_tokens: int
    max_tokens: int
    choices: int
    phase: str = "queued"  #: "queued", "prefill", "kv", "decode", "again" (to be placed again)
    share: float | None = None  #: of this phase that is done, 0 to 1, where that is known
    attempt: int = 0
    decode: str | None = None  #: worker
    prefill: str | None = None
    ttft_ms: float | None = None
    known: int = 0  #: tokens that there were when it was first heard of
    tokens_of: dict[int, int] = field(default_factory=dict)  #: by choice
    rates: dict[int, float] = field(default_factory=dict)  #: tokens per second, by choice
    told_at: dict[int, float] = field(default_factory=dict)  #: by choice, gateway's clock

    @property
    def tokens(self) -> int:
        return max(self.known, sum(self.tokens_of.values()))

    @property
    def tokens_per_s(self) -> float:
        return sum(self.rates.values())

    @property
    def name(self) -> str:
        """Short, as there are many."""
        return self.request.rpartition("-")[2][:8]


class Streams:
    """Takes what gateways say of requests. ``now`` is seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self.ttft = Window(LATELY)  #: milliseconds
        #: Milliseconds between tokens. The feed says how many tokens came in a quarter of a second,
        #: so shorter pauses show in it only as far as they slow that down.
        self.itl = Window(LATELY)
        #: Since this was emptied: attempts that broke, by decode worker and reason; requests that
        #: failed, by status and reason.
        self.broken: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[tuple[int, str]] = Counter()
        self._open: dict[Key, Stream] = {}

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def snapshot(self, gateway: str, requests: Iterable[live.Request]) -> None:
        """All that are open there."""
        self.forget(gateway)
        for said in requests:
            self._begin(
                Stream(
                    gateway=gateway,
                    request=said.request,
                    arrived=said.arrived,
                    prompt_tokens=said.prompt_tokens,
                    max_tokens=said.max_tokens,
                    choices=said.choices,
                    phase=said.phase,
                    attempt=said.attempt or 0,
                    decode=said.decode,
                    prefill=said.prefill,
                    ttft_ms=said.ttft_ms,
                    known=said.tokens,
                )
            )

    def forget(self, gateway: str) -> None:
        """Its requests are over, or nobody knows."""
        for key in [key for key in self._open if key[0] == gateway]:
            del self._open[key]

    def hear(self, gateway: str, event: live.Event, now: float) -> None:
        """What is said of requests that are not known counts as far as it can."""
        match event:
            case live.Queued():
                self._begin(_queued(gateway, event))
            case live.FirstToken():
                self.ttft.add(event.ttft_ms, now)
            case live.Ended():
                self._open.pop((gateway, event.request), None)
                if event.status != 200:
                    self.failed[event.status, event.reason] += 1
                return
        if isinstance(event, _OF_A_REQUEST):
            stream = self._open.get((gateway, event.request))
            if stream is not None:
                self._go_on(stream, event, now)

    def _begin(self, stream: Stream) -> None:
        key = stream.gateway, stream.request
        if (one := self._open.get(key)) is not None:  # another prompt of the same call
            one.prompt_tokens += stream.prompt_tokens
            one.choices += stream.choices
            one.known += stream.known
            return
        if len(self._open) >= MOST:
            del self._open[next(iter(self._open))]
        self._open[key] = stream

    def _go_on(self, stream: Stream, event: live.Event, now: float) -> None:
        match event:
            case live.Placed():
                stream.attempt, stream.share = event.attempt, None
                stream.decode, stream.prefill = event.decode, event.prefill
                stream.phase = "decode" if stream.tokens else "prefill"
            case live.Prefill() if stream.phase == "prefill":
                stream.share = _share(event.computed, event.total)
            case live.Kv() if stream.phase in ("prefill", "kv"):
                # Layers are handed over while others compute; what is left after that is told of.
                if stream.share is None or stream.share >= 1 or stream.phase == "kv":
                    stream.phase = "kv"
                    stream.share = _share(event.bytes, event.total_bytes)
            case live.FirstToken():
                stream.phase, stream.share = "decode", None
                stream.ttft_ms = stream.ttft_ms or event.ttft_ms
                stream.tokens_of[event.choice] = max(1, stream.tokens_of.get(event.choice, 0))
                stream.told_at[event.choice] = event.at
            case live.Decode():
                self._decoded(stream, event, now)
            case live.AttemptEnded():
                stream.tokens_of[event.choice] = event.tokens
                stream.rates.pop(event.choice, None)
                stream.told_at.pop(event.choice, None)
                if event.reason not in _WELL:
                    self.broken[stream.decode or "?", event.reason] += 1
                    stream.phase, stream.share = "again", None

    def _decoded(self, stream: Stream, event: live.Decode, now: float) -> None:
        stream.phase = "decode"
        stream.tokens_of[event.choice] = event.tokens
        stream.rates[event.choice] = event.tokens_per_s
        since = stream.told_at.get(event.choice)
        if since is not None and event.tokens_per_s > 0:
            count = max(1, round((event.at - since) * event.tokens_per_s))
            self.itl.add(1000 / event.tokens_per_s, now, count)
        stream.told_at[event.choice] = event.at


_OF_A_REQUEST = (
    live.Placed,
    live.Prefill,
    live.Kv,
    live.FirstToken,
    live.Decode,
    live.AttemptEnded,
)


def _queued(gateway: str, said: live.Queued) -> Stream:
    return Stream(
        gateway=gateway,
        request=said.request,
        arrived=said.at,
        prompt_tokens=said.prompt_tokens,
        max_tokens=said.max_tokens,
        choices=said.choices,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
