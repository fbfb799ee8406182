"""Applies the cost rule on one decode worker: gathers what is known, and counts what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from baton.errors import WorkerFull
from baton.identity import CompatibilityClass
from baton.ratio import Ratio
from baton.settings import LocalPrefillSettings
from baton.v1 import worker_pb2
from decode_worker.cost_rule import Choice, Here, There, Why, choose
from decode_worker.prefill_client import Target
from model.engine.engine import Load
from model.engine.sequence import Reservation

#: Prefill instances remembered; one that was restarted is another instance.
_REMEMBERED = 256


class Computes(Protocol):
    """The engine, as far as it matters here."""

    def load(self) -> Load: ...

    def compute_here(self, seq_id: int) -> None:
        """See ``Engine.compute_here``. Raises WorkerFull."""


@dataclass(slots=True)
class _Pair:
    """What hand-offs from one prefill worker have shown."""

    #: Seconds per byte that the last KV came after the end of the compute: the inverse of the
    #: bandwidth, where the transfer is not hidden behind the compute. 0 until measured.
    transfer: Ratio = field(default_factory=Ratio)
    #: Share of the tokens cached here that were cached there as well.
    cached: Ratio = field(default_factory=Ratio)

    def missing(self, total: int, reused: int) -> int:
        """Tokens of ``total`` to compute there, when ``reused`` need not be here; as many as
        here until measured."""
        share = self.cached.value if self.cached.units else 1.0
        return total - round(share * reused)


class Chooser:
    """Decides for every attempt of one worker. All on the event loop; holds no sequence."""

    def __init__(
        self,
        engine: Computes,
        compatibility: CompatibilityClass,
        settings: LocalPrefillSettings,
        *,
        colocated: bool,
    ) -> None:
        self._engine = engine
        self._colocated = colocated
        self._target_s = settings.itl_target_ms / 1e3
        self._queue_limit = settings.local_prefill_queue
        self._block_size = compatibility.block_size
        self._token_bytes = (
            compatibility.layers * compatibility.block_bytes / compatibility.block_size
        )
        self._pairs: dict[str, _Pair] = {}
        self._counts: Counter[Why] = Counter()

    def receives(self, target: Target | None) -> bool:
        """Whether blocks are reserved for KV from elsewhere, before ``stays`` decides."""
        return target is not None and not self._colocated

    def stays(self, target: Target | None, reserved: Reservation) -> bool:
        """Whether the prompt of a sequence just reserved is computed here; then it is queued."""
        if self._colocated:
            choice = Choice(Why.COLOCATED)
        elif target is None:
            choice = Choice(Why.NO_TARGET)
        else:
            choice = self._weigh(target, reserved)
            if choice.local:
                choice = self._queue(reserved, choice)
        self._counts[choice.why] += 1
        return choice.local

    def handed_over(
        self, target: Target, *, nbytes: int, tail_s: float, hit: int, hit_there: int
    ) -> None:
        """Learn from a hand-off: so many bytes, the last of them ``tail_s`` seconds after the
        first token, and so many tokens that were cached here and there."""
        pair = self._pairs.pop(target.instance_id, None) or _Pair()
        self._pairs[target.instance_id] = pair
        if len(self._pairs) > _REMEMBERED:
            del self._pairs[next(iter(self._pairs))]
        if nbytes:
            pair.transfer.add(tail_s, nbytes)
        if hit:
            pair.cached.add(min(hit, hit_there), hit)

    def decisions(self) -> list[worker_pb2.PrefillDecision]:
        """Attempts so far, by where and why. Also called on threads of scrapes, so it goes over a
        copy."""
        return [
            worker_pb2.PrefillDecision(local=why.local, reason=why.value, count=count)
            for why, count in tuple(self._counts.items())
        ]

    def _weigh(self, target: Target, reserved: Reservation) -> Choice:
        load = self._engine.load()
        pair = self._pairs.get(target.instance_id) or _Pair()
        total, hit = reserved.total_tokens, reserved.hit_tokens
        # The last token is computed in any case, here and there, in a block of its sequence.
        reused = min(hit, (total - 1) // self._block_size * self._block_size)
        return choose(
            Here(
                missing=total - reused,
                queued=load.queued_tokens,
                queue_limit=self._queue_limit,
                decoding=load.running > 0,
                target_s=self._target_s,
                costs=load.costs,
            ),
            There(
                missing=pair.missing(total, reused),
                queued=target.queued_tokens,
                token_s=target.prefill_token_s,
                transfer_s=pair.transfer.value * (total - hit) * self._token_bytes,
            ),
        )

    def _queue(self, reserved: Reservation, choice: Choice) -> Choice:
        """Have it computed here, after all of its hit, unless that takes a block too many."""
        try:
            self._engine.compute_here(reserved.seq_id)
        except WorkerFull:
            return Choice(Why.NO_BLOCKS, choice.here_s, choice.there_s)
        return choice
