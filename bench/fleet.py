"""The workers that whole requests are measured on.

    core A    a prefill worker; a colocated worker; a prefill worker that computes nothing
    core B    a decode worker for each transport

One request at a time, so that a core works for one of them at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench import cluster, cores, course
from bench.cluster import Answer, Background, Spec
from bench.course import Course
from bench.shapes import ModelShape
from gateway.fleet import Worker
from gateway.session import Session

#: Sequences that decode beside the one that is measured, and their prompts, tokens.
BATCH, BATCH_PROMPT = 4, 64
#: Tokens of each answer: the first, the second, and some more to see what a step takes.
ANSWER = 16
#: Tokens for which pools have room beside the longest prompt.
_SPARE = 8192


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers, ready."""

    shape: ModelShape
    colocated: Session
    decode: dict[str, Session]  #: by transport
    prefill: Worker
    sender: Worker  #: computes nothing: every block is there from the start
    unavailable: dict[str, str]  #: transports that cannot be used here, and why
    _random: np.random.Generator
    _traces: Path

    async def colocate(self, tokens: int) -> Answer:
        return await cluster.ask(self.colocated, self.prompt(tokens), ANSWER, None)

    async def hand_over(self, transport: str, tokens: int) -> Answer:
        return await cluster.ask(self.decode[transport], self.prompt(tokens), ANSWER, self.prefill)

    async def alone(self, transport: str, tokens: int) -> Answer:
        """Only the KV of so many tokens, all of it there to begin with."""
        return await cluster.ask(self.decode[transport], self.prompt(tokens), 2, self.sender)

    def batch(self, transport: str) -> AbstractAsyncContextManager[Background]:
        """A running batch on that transport's decode worker."""
        prompts = [self.prompt(BATCH_PROMPT) for _ in range(BATCH)]
        return cluster.background(self.decode[transport], prompts, _SPARE // BATCH - BATCH_PROMPT)

    def prompt(self, tokens: int) -> list[int]:
        """Random ids: no two prompts share a prefix."""
        ids: list[int] = self._random.integers(0, self.shape.vocab, tokens).tolist()
        return ids

    def courses(self) -> dict[str, Course]:
        """Of all hand-offs so far, by request."""
        return course.read(self._traces)


@asynccontextmanager
async def fleet(shape: ModelShape, transports: Sequence[str], longest: int) -> AsyncIterator[Fleet]:
    """Workers for prompts of up to ``longest`` tokens. Raises PeerFailed."""
    near, far = cores.two()
    with TemporaryDirectory() as folder:
        traces = Path(folder) / "traces"
        model = cluster.model_flags(shape, longest + _SPARE)
        model += ("--kv-trace", str(traces))
        real = (*model, "--dtype", "bfloat16")
        offers = ("--kv-transports", ",".join(transports))
        specs = {
            "prefill": Spec("prefill_worker", near, (*real, *offers)),
            "colocated": Spec("decode_worker", near, (*real, "--local-prefill")),
            "sender": Spec("bench.sender", near, (*model, *offers, "--gb-per-s", "inf")),
        }
        specs |= {name: cluster.decode_spec(real, name, far) for name in transports}
        async with cluster.workers(specs) as found, AsyncExitStack() as stack:
            unavailable = cluster.unavailable(found, transports)
            sessions = {
                name: await stack.enter_async_context(cluster.session(found[name]))
                for name in ("colocated", *transports)
            }
            yield Fleet(
                shape,
                sessions.pop("colocated"),
                {name: to for name, to in sessions.items() if name not in unavailable},
                found["prefill"],
                found["sender"],
                unavailable,
                np.random.default_rng(0),
                traces,
            )
