"""Workers that were full, tried again."""

from __future__ import annotations

from collections.abc import Callable

from gateway.placement import Place

#: Seconds after which a worker that was full is tried with one request, whatever it reports.
MOMENT = 0.1


class Again:
    """Once for all that are refused meanwhile. The simulator's gateway has one, too."""

    def __init__(
        self, later: Callable[[float, Callable[[], None]], object], changed: Callable[[], None]
    ) -> None:
        """``later`` calls in so many seconds; ``changed`` has those who wait look for room."""
        self._later = later
        self._changed = changed
        #: Pairs of workers that are soon tried again.
        self._full: set[frozenset[str]] = set()

    def soon(self, place: Place) -> None:
        """Both workers of a place that had no room."""
        workers = [worker for worker in (place.decode, place.prefill) if worker is not None]
        names = frozenset(worker.instance_id for worker in workers)
        if names in self._full:
            return

        def try_again() -> None:
            self._full.discard(names)
            for worker in workers:
                worker.try_again()
            self._changed()

        self._full.add(names)
        self._later(MOMENT, try_again)
