"""Who may come in: the roles an engine has now, their limits, and whether it is leaving."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from baton.errors import Draining
from baton.identity import Role
from model.engine.sequence import Sequence, SequenceRequest
from model.engine.settings import SchedulerSettings


class Intake:
    """Refuses what cannot or may not be taken in, before a block of it is reserved."""

    def __init__(self, settings: SchedulerSettings, num_blocks: int) -> None:
        self._settings = settings
        self._num_blocks = num_blocks
        self.draining = False
        self.take_roles(tuple(Role))

    def take_roles(self, roles: Collection[Role]) -> None:
        """Refuse new sequences of other roles. Each of both has its share of the memory."""
        self._roles = frozenset(roles)
        both = len(self._roles) > 1
        self._limits = self._settings if both else replace(self._settings, keep_blocks=None)

    def admit(self, request: SequenceRequest, live: Iterable[Sequence]) -> bool:
        """Whether ``request`` has room beside those that are ``live``, as far as quotas go.

        Raises Draining when the worker leaves or has another role, and what
        ``SchedulerSettings.require_fits`` and ``has_room`` raise.
        """
        if self.draining:
            raise Draining("this worker is leaving and takes no new sequences")
        if request.role not in self._roles:
            raise Draining(f"this worker does not {request.role.value} now")
        self._limits.require_fits(request, self._num_blocks)
        return self._limits.has_room(request, live)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that may come, in the roles taken."""
        return self._limits.longest(self._num_blocks)

    def prefill_room(self, live: Iterable[Sequence]) -> int | None:
        """Blocks that ``keep`` sequences may still take; None where they have no quota."""
        return self._limits.keep_room(live)
