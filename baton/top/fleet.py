"""The workers, as all gateways together see them."""

from __future__ import annotations

from dataclasses import dataclass

from baton import live

#: From good to bad. What one gateway finds wrong with a worker counts, whatever the others say.
STATES = ("healthy", "connecting", "suspect", "refused", "out")

#: How a worker stands out that is much slower than the others; ``gateway.telling.paces`` judges.
_SLOW = "slow"


@dataclass(frozen=True, slots=True)
class View:
    """A worker as it is shown."""

    key: str
    worker: live.Worker
    state: str  #: the worst that a gateway says
    heard: bool  #: False: by no gateway that can be heard now
    verdict: live.Verdict | None = None  #: how it stands out; the worst that a gateway says

    @property
    def name(self) -> str:
        return self.worker.id or self.worker.address

    @property
    def role(self) -> str:
        """In a word; empty when it has not said."""
        roles = self.worker.roles
        return "both" if len(roles) > 1 else "".join(roles)

    @property
    def colocated(self) -> bool:
        """It decodes, and computes all its prompts itself."""
        return self.worker.local_prefill and self.role == "decode"

    @property
    def slow(self) -> live.Verdict | None:
        """Its verdict, where that is what it says."""
        return self.verdict if self.verdict is not None and self.verdict.kind == _SLOW else None

    @property
    def trouble(self) -> int:
        """How much it needs a look; 0: not at all."""
        if not self.heard:
            return len(STATES) + 1
        if self.state != "healthy":
            return 1 + STATES.index(self.state) if self.state in STATES else len(STATES)
        return 1 if self.slow or self.worker.draining or self.worker.breaker != "closed" else 0


class Fleet:
    """Takes what gateways say of workers."""

    def __init__(self) -> None:
        self._said: dict[str, dict[str, live.Worker]] = {}  # by gateway, the latest last
        self._silent: set[str] = set()

    def snapshot(self, gateway: str, workers: list[live.Worker]) -> None:
        """All that this gateway knows."""
        self._silent.discard(gateway)
        there = {_key(worker.id, worker.address) for worker in workers}
        for key in [key for key, said in self._said.items() if gateway in said]:
            if key not in there:
                self._forget(gateway, key)
        for worker in workers:
            self.hear(gateway, worker)

    def hear(self, gateway: str, worker: live.Worker) -> tuple[View | None, View]:
        """It before and now."""
        key = _key(worker.id, worker.address)
        before = self._view(key) if key in self._said else None
        said = self._said.setdefault(key, {})
        said.pop(gateway, None)
        said[gateway] = worker
        return before, self._view(key)

    def gone(self, gateway: str, said: live.WorkerGone) -> View | None:
        """It as it was, when no other gateway has it any more."""
        key = _key(said.id, said.address)
        before = self._view(key) if key in self._said else None
        self._forget(gateway, key)
        return None if key in self._said else before

    def silence(self, gateway: str) -> None:
        """What this gateway says counts no more, until it is heard again."""
        self._silent.add(gateway)

    def views(self) -> list[View]:
        """All, in no order."""
        return [self._view(key) for key in self._said]

    def _view(self, key: str) -> View:
        by_gateway = self._said[key]
        heard = [said for gateway, said in by_gateway.items() if gateway not in self._silent]
        states = [said.state for said in heard or by_gateway.values()]
        verdicts = [said.verdict for said in heard if said.verdict is not None]
        return View(
            key=key,
            worker=(heard or list(by_gateway.values()))[-1],
            state=max(states, key=lambda s: STATES.index(s) if s in STATES else len(STATES)),
            heard=bool(heard),
            verdict=max(verdicts, key=lambda v: (v.kind == _SLOW, v.times), default=None),
        )

    def _forget(self, gateway: str, key: str) -> None:
        said = self._said.get(key)
        if said is not None:
            said.pop(gateway, None)
            if not said:
                del self._said[key]


def _key(id: str | None, address: str) -> str:
    return id or f"@{address}"
