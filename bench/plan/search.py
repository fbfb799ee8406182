"""Which split of so many workers serves most requests in time.

A split's goodput is the highest rate at which a share of all requests keeps the SLOs, found by
halving. Between few and many prefill workers it rises while prefill holds it back and falls while
decode does, so the best is found by going uphill from the split at which both would be as busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.simulate.fleet import Fleet, Setup, simulate
from bench.simulate.jobs import Job
from bench.simulate.outcome import Outcome, Slo

#: How exactly a rate is found, as a share of it.
_EXACT = 0.02
#: How many times more or less than guessed a fleet may serve.
_FAR = 4096
#: Shares of a port's time and of requests at which the network and memory are what holds back.
_FULL, _MANY = 0.9, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What counts as served."""

    slo: Slo
    share: float  #: of all requests that must keep it


@dataclass(frozen=True, slots=True)
class Tried:
    """A fleet, and what it serves."""

    fleet: Fleet
    rate: float  #: requests per second, at most
    outcome: Outcome  #: at that rate


class Search:
    """Tries fleets, each once."""

    def __init__(self, setup: Setup, goal: Goal, timed: Callable[[float], Sequence[Job]]) -> None:
        """``timed`` gives the load at so many requests per second."""
        self.setup = setup
        self._goal = goal
        self.timed = timed
        self.guess = float(setup.fleet.workers)  #: requests per second to begin with
        self.tried: dict[Fleet, Tried] = {}

    def best(self, workers: int) -> Tried:
        """Of all splits of so many workers, colocated ones included."""
        found = [self.colocated(workers)]
        if workers > 1:
            found.append(self._uphill(workers))
        return max(found, key=lambda tried: tried.rate)

    def colocated(self, workers: int) -> Tried:
        return self.rate(Fleet(colocated=workers))

    def split(self, workers: int, prefill: int) -> Tried:
        return self.rate(Fleet(prefill=prefill, decode=workers - prefill))

    def rate(self, fleet: Fleet) -> Tried:
        """What a fleet serves."""
        if fleet not in self.tried:
            self.tried[fleet] = self._measure(fleet)
        return self.tried[fleet]

    def run(self, fleet: Fleet, rate: float) -> Outcome:
        return simulate(replace(self.setup, fleet=fleet), self.timed(rate))

    def _uphill(self, workers: int) -> Tried:
        """From the balanced split on to a neighbour while that serves more. One that serves as many
        is passed over, to see what is behind."""
        here = self.split(workers, _balanced(self.setup, self.timed(1.0), workers))
        for step in (-1, 1):
            prefill, worse = here.fleet.prefill, 0
            while worse < 2 and 1 <= (prefill := prefill + step) <= workers - 1:
                there = self.split(workers, prefill)
                worse = 0 if there.rate > here.rate else worse + 1
                here = max(here, there, key=lambda tried: tried.rate)
        return here

    def _measure(self, fleet: Fleet) -> Tried:
        """Doubles or halves a rate until one is kept and twice as much is not, then closes in."""
        rate = self.guess
        outcome = self.run(fleet, rate)
        if self._keeps(outcome):
            best, low, high = outcome, rate, 2 * rate
            while high < rate * _FAR and self._keeps(outcome := self.run(fleet, high)):
                best, low, high = outcome, high, 2 * high
        else:
            low, high = rate / 2, rate
            while not self._keeps(best := self.run(fleet, low)):
                if low < rate / _FAR:
                    return Tried(fleet, 0.0, best)
                low, high = low / 2, low
        while high - low > _EXACT * high:
            middle = (low + high) / 2
            if self._keeps(outcome := self.run(fleet, middle)):
                best, low = outcome, middle
            else:
                high = middle
        self.guess = low
        return Tried(fleet, low, best)

    def _keeps(self, outcome: Outcome) -> bool:
        return outcome.attained(self._goal.slo) >= self._goal.share


def _balanced(setup: Setup, load: Sequence[Job], workers: int) -> int:
    """Prefill workers so that both sides would be as busy, by the cost model alone, at batches of
    half of what runs at most; a place to start from."""
    costs, batch = setup.costs, max(1, setup.settings.max_running // 2)
    prefill = sum(
        costs.prefill_token_s * j.tokens + costs.prefill_pair_s * j.tokens**2 / 2 for j in load
    )
    decode = sum(
        j.output * (costs.step_s / batch + costs.decode_s + costs.context_token_s * j.tokens)
        for j in load
    )
    share = prefill / (prefill + decode) if prefill + decode else 0.5
    return min(workers - 1, max(1, round(share * workers)))


def first_to_break(outcome: Outcome, goal: Goal) -> str:
    """What holds a fleet back at a load that it does not serve."""
    slo, asked = goal.slo, outcome.asked
    if outcome.attained(slo) >= goal.share:
        return "nothing: it is served"
    busy = ", ".join(f"{role} workers {share:.0%} busy" for role, share in outcome.busy.items())
    if outcome.network > _FULL:
        return f"the network: a port carries KV {outcome.network:.0%} of the time ({busy})"
    if outcome.preempted > _MANY * asked:
        return f"KV memory of decode workers: {outcome.preempted} preemptions ({busy})"
    late = sum(ttft > slo.ttft for ttft in outcome.ttft) + outcome.refused.total()
    slow = sum(tpot > slo.tpot for tpot in outcome.tpot)
    if slow > late:
        return f"decoding: {slow / asked:.0%} of the answers are too slow ({busy})"
    refused = "; ".join(f"{n} {code}" for code, n in outcome.refused.most_common())
    where = "prefill" if "prefill" in outcome.busy else "computing prompts"
    if outcome.line > _MANY * asked and max(outcome.busy, key=outcome.busy.__getitem__) == "decode":
        where = "room on decode workers"
    text = f"{where}: {late / asked:.0%} of the first tokens are late or refused"
    return f"{text} ({busy}{'; ' if refused else ''}{refused})"
