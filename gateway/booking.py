"""What an attempt takes up on its workers."""

from __future__ import annotations

from gateway.fleet import Worker


class Booking:
    """What one attempt takes up on its workers, counted there until their own reports show it.

    Choices that begin as one share it: each takes a block with it when it ends, the last one all.
    """

    def __init__(
        self,
        decode: Worker,
        prefill: Worker | None,
        tokens: int,
        now: float,
        choices: int = 1,
        cached: int = 0,
    ) -> None:
        """``tokens`` of prompt and generated ids, of which ``cached`` need not be computed."""
        self._decode = decode
        self._prefill = prefill
        self._missing = tokens - cached
        self._choices = choices
        self._blocks = decode.blocks(tokens, choices)
        self._prefill_blocks = 0 if prefill is None else prefill.blocks(tokens)
        self._computed = self._taken = False
        self._began = now
        #: Workers for which this attempt decides whether they get more.
        self._trials = [w for w in (decode, prefill) if w is not None and w.breaker.began()]
        if prefill is None:
            self._decoding = self._computing = decode.placed(self._missing, self._blocks, now)
        else:
            self._decoding = decode.placed(0, self._blocks, now)
            self._computing = prefill.placed(self._missing, self._prefill_blocks, now)

    def started(self) -> None:
        """The first token is here: the workers took the attempt, and the prompt is computed."""
        self._count_computed()
        for worker in (self._decode, self._prefill):
            if worker is not None:
                worker.accepted()
                worker.breaker.succeeded()

    def failed(self, worker: Worker, now: float, *, silent: bool = False) -> None:
        """The attempt was lost through ``worker``'s fault; ``silent``: see Breaker."""
        worker.breaker.failed(self._began, now, silent=silent)

    def handed_over(self) -> bool:
        """A second token of a choice is here, so the decode worker has the prompt's KV, and the
        prefill worker its blocks back. Returns whether that is news."""
        if self._prefill is None or self._taken:
            return False
        self._taken = True
        self._prefill.returned(self._computing, 0, self._prefill_blocks)
        return True

    def ended(self) -> None:
        """A choice has left its workers; call once for each."""
        self._choices -= 1
        if self._choices:
            self._blocks -= 1
            self._decode.returned(self._decoding, 0, 1)
            return
        self._count_computed()
        self.handed_over()
        self._decode.returned(self._decoding, 0, self._blocks)
        for worker in self._trials:
            worker.breaker.undecided()

    def _count_computed(self) -> None:
        if not self._computed:
            self._computed = True
            (self._prefill or self._decode).returned(self._computing, self._missing, 0)
