"""What the feed says of workers: of those of which something has changed, a few times a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from baton import live
from gateway.fleet import Load, Report
from gateway.registry import Member
from gateway.telling.feed import Feed
from gateway.telling.gaps import milliseconds
from gateway.telling.paces import Paces

#: Seconds between two looks at the workers, and how many of them are told of a second at most.
_EVERY, _A_SECOND = 0.25, 400
#: Seconds over which rates are taken.
_RATE = 1.0


@dataclass(slots=True)
class _Seen:
    """What was last said of a worker, and where its rates are counted from."""

    said: live.Worker
    report: Report | None
    since: float = 0.0
    load: Load = field(default_factory=Load)
    drawn: float = 0.0  #: tokens per second
    computed: float = 0.0


class Workers:
    """Looks at the members of a registry while somebody listens."""

    def __init__(
        self,
        members: Callable[[], Iterable[Member]],
        feed: Feed,
        paces: Paces,
        clock: Callable[[], float],
    ) -> None:
        """``clock``: monotonic seconds."""
        self._members = members
        self._feed = feed
        self._paces = paces
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._verdicts: dict[str, live.Verdict] = {}
        self._judged_at = 0.0

    @property
    def pause(self) -> float:
        """Seconds until they are to be looked at again."""
        return max(_EVERY, len(self._seen) / _A_SECOND)

    def snapshot(self, unix: Callable[[float], float]) -> list[live.Worker]:
        """All of them."""
        self.look(unix)
        return [seen.said for seen in self._seen.values()]

    def look(self, unix: Callable[[float], float]) -> None:
        """Say what has changed since the last time."""
        now = self._clock()
        at, members = unix(now), {_key(member): member for member in self._members()}
        for key in self._seen.keys() - members.keys():
            gone = self._seen.pop(key).said
            self._feed.say(live.WorkerGone(at=at, id=gone.id, address=gone.address))
        verdicts = self._judge(now)
        for key, member in members.items():
            seen = self._seen.get(key)
            report = None if member.worker is None else member.worker.report
            if seen is None:
                seen = self._seen[key] = _Seen(_described(member, at, None), report)
                self._rate(seen, report, now)
                self._feed.say(seen.said)
                continue
            moved, verdict = self._rate(seen, report, now), verdicts.get(seen.said.id or "")
            news = moved or report is not seen.report or verdict != seen.said.verdict
            if news or _stands(member) != _stood(seen.said):
                described = replace(_described(member, at, seen), verdict=verdict)
                if replace(described, at=seen.said.at) != seen.said:
                    seen.said = described
                    self._feed.say(described)
            if report is not None and report is not seen.report:
                self._paces.stepped(
                    seen.said.id or "", now, seen.said.last_step_ms, seen.said.running
                )
            seen.report = report

    def _judge(self, now: float) -> dict[str, live.Verdict]:
        """By what is known so far, at most once a second: it takes a while with many."""
        if now - self._judged_at >= _RATE:
            self._judged_at = now
            told = [seen.said for seen in self._seen.values()]
            self._paces.keep(said.id for said in told if said.id is not None)
            self._verdicts = self._paces.verdicts(told, now)
        return self._verdicts

    def forget(self) -> None:
        """Nobody listens: what was last said is of no use."""
        self._seen.clear()
        self._paces.forget()
        self._verdicts = {}

    def _rate(self, seen: _Seen, report: Report | None, now: float) -> bool:
        """Take the rates anew where it is time; returns whether they have changed."""
        if report is None:
            return False
        if not seen.since:
            seen.since, seen.load = now, report.load
        if (seconds := now - seen.since) < _RATE:
            return False
        before, seen.since, seen.load = seen.load, now, report.load
        rates = (
            round((report.load.generated_tokens - before.generated_tokens) / seconds, 1),
            round((report.load.prompt_tokens - before.prompt_tokens) / seconds, 1),
        )
        new = rates != (seen.drawn, seen.computed)
        seen.drawn, seen.computed = rates
        return new


def _key(member: Member) -> str:
    """An address has one member, but one instance after another."""
    return f"{member.address} {'' if member.worker is None else member.worker.instance_id}"


def _stands(member: Member) -> tuple[object, ...]:
    breaker = "closed" if member.worker is None else member.worker.breaker.state.value
    return member.health.value, member.reason, breaker


def _stood(said: live.Worker) -> tuple[object, ...]:
    return said.state, said.reason, said.breaker


def _described(member: Member, at: float, seen: _Seen | None) -> live.Worker:
    if member.worker is None:
        return live.Worker(
            id=None,
            at=at,
            address=member.address,
            state=member.health.value,
            reason=member.reason,
        )
    worker, report = member.worker, member.worker.report
    load = report.load
    return live.Worker(
        id=live.short(worker.instance_id),
        at=at,
        address=member.address,
        state=member.health.value,
        reason=member.reason,
        roles=sorted(role.value for role in report.roles),
        possible_roles=sorted(role.value for role in report.possible_roles),
        local_prefill=report.local_prefill,
        breaker=worker.breaker.state.value,
        draining=report.draining,
        model=report.model,
        queued_tokens=load.queued_tokens,
        running=load.running,
        waiting=load.waiting,
        max_running=report.max_running,
        blocks=live.Blocks(
            free=load.blocks_free,
            cached=load.blocks_cached,
            owned=load.blocks_owned,
            quarantined=load.blocks_quarantined,
        ),
        cache_hit_tokens=load.cache_hit_tokens,
        prompt_tokens=load.prompt_tokens,
        generated_tokens=load.generated_tokens,
        tokens_per_s=0.0 if seen is None else seen.drawn,
        prompt_tokens_per_s=0.0 if seen is None else seen.computed,
        last_step_ms=milliseconds(load.last_step),
    )
