"""Which worker should change its role, decided from the state of those that pair. Pure.

Two quantities say how the sides stand:

    queue      seconds of compute that prompts wait for on prefill workers, on average
    fullness   of decode workers, on average: of batch or of KV memory, whichever is fuller, by
               sequences that decode; those that wait for KV are the other side's work

    decode -> prefill   queue above LONG, and the decode workers that stay would be below ROOMY
    prefill -> decode   fullness above FULL, and the queue of those that stay would be below SHORT

Both look at what would be *after* the change, with the same work on one worker less. So no change
calls for its opposite: a worker leaves decode only if the others are then below ROOMY, and one
comes back only above FULL. In between must lie another load, and ``hold`` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from baton.identity import Role
from gateway.fleet import Health, Worker
from gateway.roster import Pool

#: Seconds of queued compute: too long for a first token; hardly more than a prompt or two.
LONG, SHORT = 1.0, 0.25
#: Shares of batch or memory. Sequences that wait for KV have places, too, so above the first new
#: ones soon find none.
FULL, ROOMY = 0.75, 0.5
#: Seconds that the reason for a change must last: longer than one burst of prompts.
LASTING = 5.0


@dataclass(frozen=True, slots=True)
class Move:
    """Tell ``worker`` to do ``role`` alone."""

    worker: Worker
    role: Role
    why: str


class Balance:
    """Decides for one pool. ``decide`` is asked now and then, and says when it is time.

    It remembers only since when there has been a reason; what was changed, and when, the workers
    say themselves, so it does not matter who changed it.
    """

    def __init__(self, controller: str, hold: float) -> None:
        """``controller``: decide only where every worker names this gateway. ``hold``: seconds
        from the last change of any worker, or its start, to the next."""
        self._controller = controller
        self._hold = hold
        self._role: Role | None = None
        self._since = 0.0

    def decide(self, pool: Pool, now: float) -> Move | None:
        """The change that it is time for at ``now``, seconds of any clock."""
        move = self._wanted(pool)
        if move is None or move.role is not self._role:
            self._role, self._since = (None if move is None else move.role), now
        if move is None or now - self._since < LASTING or not self._settled(pool):
            return None
        self._role = None
        return move

    def _settled(self, pool: Pool) -> bool:
        """Whether all are well, have done the same for a while, and let this gateway decide."""
        return all(
            worker.health is Health.HEALTHY
            and worker.report.controller == self._controller
            and worker.report.roles_since >= self._hold
            for worker in {*pool.prefill, *pool.decode}
            if len(worker.report.possible_roles) > 1
        )

    def _wanted(self, pool: Pool) -> Move | None:
        queue, fullness = _mean(pool.prefill, _queue), _mean(pool.decode, _fullness)
        how = f"prompts wait for {queue:.1f} s, decode workers are {fullness:.0%} full"
        if queue > LONG and _with_one_less(fullness, pool.decode) < ROOMY:
            spare, role = _spare(pool.decode, _fullness), Role.PREFILL
        elif fullness > FULL and _with_one_less(queue, pool.prefill) < SHORT:
            spare, role = _spare(pool.prefill, _queue), Role.DECODE
        else:
            return None
        return None if spare is None else Move(spare, role, how)


Measure = Callable[[Worker], float]


def _queue(worker: Worker) -> float:
    """Seconds of compute; 0 as long as nothing is measured."""
    return worker.queued_tokens * worker.report.load.prefill_token


def _fullness(worker: Worker) -> float:
    load, batch = worker.report.load, worker.report.max_running
    decoding = load.running / max(1, load.running + load.waiting)
    memory = decoding * load.blocks_owned / max(1, worker.all_blocks)
    return max(memory, load.running / batch if batch else 0.0)


def _mean(workers: Sequence[Worker], measure: Measure) -> float:
    return sum(map(measure, workers)) / max(1, len(workers))


def _with_one_less(mean: float, workers: Sequence[Worker]) -> float:
    """What a mean over ``workers`` becomes when the others have to do it all."""
    return mean * len(workers) / (len(workers) - 1) if len(workers) > 1 else inf


def _spare(workers: Sequence[Worker], work: Measure) -> Worker | None:
    """Who has least to do of those that may be taken away: it has this role alone, can take the
    other, and another stays that holds sequences as long."""
    able = [
        worker
        for worker in workers
        if len(worker.report.roles) == 1
        and len(worker.report.possible_roles) > 1
        and any(
            other.report.max_model_len >= worker.report.max_model_len
            for other in workers
            if other is not worker
        )
    ]
    return min(able, key=work, default=None)
