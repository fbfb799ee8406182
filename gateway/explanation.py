"""Why a request was placed where it was, for whoever asks with ``x-baton-debug: placement``.

Workers are named by the beginning of their instance ids, as in ``/cluster``: who may ask for
completions need not learn addresses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gateway.fleet import Health, Worker
from gateway.policies import Asked

#: The header that asks, and what it may ask for.
ASK, PLACEMENT = "x-baton-debug", "placement"
#: The header that answers: one line of JSON.
ANSWER = "x-baton-placement"
#: Workers named for each side: those with the lowest scores.
_NAMED = 4
_NAME_LENGTH = 8

#: What is rendered as JSON.
Explanation: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class Pick:
    """The worker chosen for one side of a request, and from whom."""

    worker: Worker
    asked: Asked
    why: str
    #: (whether it is suspect, its score), of each compared; empty where scores did not matter.
    scores: Sequence[tuple[bool, tuple[float, ...]]]
    compared: Sequence[tuple[Worker, Asked]]


@dataclass(slots=True)
class Trail:
    """The attempts of one request that wants to know."""

    attempts: int = 0
    last: Explanation = field(default_factory=dict)

    def add(self, explanation: Explanation | None) -> None:
        if explanation is not None:
            self.last = {"attempt": self.attempts, **explanation}
        self.attempts += 1

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the latest attempt."""
        return {ANSWER: json.dumps(self.last, separators=(",", ":"))}


def explain(policy: str, decode: Pick, prefill: Pick | None) -> Explanation:
    """``prefill``: None where the decode worker computes the prompt itself."""
    sides = {"decode": _side(decode), "prefill": None if prefill is None else _side(prefill)}
    return {"policy": policy, **sides}


def _side(pick: Pick) -> Explanation:
    scored = list(zip(pick.scores, pick.compared, strict=True)) if pick.scores else []
    scored.sort(key=lambda one: (one[0], one[1][0] is not pick.worker))
    return {
        "worker": _name(pick.worker),
        "why": pick.why,
        "compared": len(pick.compared),
        "best": [
            {"worker": _name(worker), "score": _rounded(score), **_terms(worker, asked)}
            for (_, score), (worker, asked) in scored[:_NAMED]
        ],
    }


def _terms(worker: Worker, asked: Asked) -> Explanation:
    """What scores are made of, whichever the policy."""
    load = worker.report.load
    return {
        "queued": worker.queued_tokens,
        "cached": None if asked.hits is None else asked.cached(worker),
        "transfer_ms": round(1e3 * asked.transfer(worker), 3),
        "live_tokens": worker.live_tokens,
        "room_blocks": worker.room_blocks,
        "sequences": load.running + load.waiting,
        "suspect": worker.health is Health.SUSPECT,
    }


def _name(worker: Worker) -> str:
    return worker.instance_id[:_NAME_LENGTH]


def _rounded(score: tuple[float, ...]) -> list[float]:
    return [round(part, 6) for part in score]
