"""Which tokens held answers may go on with, found while the step computes their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from baton.errors import BatonError
from model.engine.plan import Sample, StepPlan


class MasksAhead:
    """Asks every constraint of a step on a thread of its own, so that the sampler finds what it
    would have to compute. What comes out is the same; llguidance holds no interpreter lock."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="masks")

    @contextmanager
    def beside(self, plan: StepPlan) -> Iterator[None]:
        """The body computes the step, and samples. Nothing of the step is read after it."""
        held = [
            sample
            for piece in plan.slices
            if piece.sample is None or piece.sample.constraint is not None  # the others are many
            for _, sample in piece.asked
            if sample.constraint is not None
        ]
        if not held:
            yield
            return
        asking = self._thread.submit(_ask, held)
        try:
            yield
        finally:
            asking.result()

    def close(self) -> None:
        """After the last step."""
        self._thread.shutdown()


def _ask(held: Sequence[Sample]) -> None:
    for sample in held:
        assert sample.constraint is not None
        with suppress(BatonError):  # the sampler asks again, and is told the same
            sample.constraint.allowed(sample.generated_ids)
