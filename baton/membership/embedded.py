"""Membership by registration: workers join, renew with every beat, and leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from baton.latest import Latest
from baton.liveness import Beat, weight
from baton.membership import Entry

log = structlog.get_logger(__name__)


class Roll:
    """Who has joined, and how many beats ago.

    Silence is counted in our own ticks: after a stop of our own, nobody is expired for what he
    could not have said.
    """

    def __init__(self, missed: int) -> None:
        """``missed``: silent beats after which a member has left."""
        self._missed = missed
        self._members: dict[str, Entry] = {}
        self._silent: dict[str, float] = {}
        self._holders: dict[str, str] = {}

    @property
    def entries(self) -> frozenset[Entry]:
        return frozenset(self._members.values())

    def holder(self, address: str) -> str | None:
        """Who has registered the member at that address; None when there is none."""
        return self._holders.get(address)

    def join(self, entry: Entry, holder: str = "") -> None:
        """Enter or renew; whoever was at that address is replaced."""
        self._members[entry.address] = entry
        self._silent[entry.address] = 0
        self._holders[entry.address] = holder

    def leave(self, address: str, instance_id: str) -> None:
        """Nothing happens unless that instance is there."""
        member = self._members.get(address)
        if member is not None and member.instance_id == instance_id:
            del self._members[address], self._silent[address], self._holders[address]

    def tick(self, beats: float = 1.0) -> list[Entry]:
        """Count a beat, or as much of one; returns those who have thereby missed too many."""
        for address in self._silent:
            self._silent[address] += beats
        expired = [self._members[a] for a, n in self._silent.items() if n >= self._missed]
        for entry in expired:
            self.leave(entry.address, entry.instance_id)
        return expired


class EmbeddedMembership:
    """The gateway's half of registration; ``MembershipService`` calls it."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._roll = Roll(beat.missed)
        self._entries = Latest(self._roll.entries)

    def __len__(self) -> int:
        """Members."""
        return len(self._roll.entries)

    @property
    def renew_after(self) -> float:
        """Seconds after which a member should join again."""
        return self._beat.interval

    def holder(self, address: str) -> str | None:
        """Whose certificate the registration at that address came with ("": none, without TLS);
        None when nobody is registered there."""
        return self._roll.holder(address)

    def join(self, entry: Entry, holder: str = "") -> None:
        self._roll.join(entry, holder)
        self._entries.set(self._roll.entries)

    def leave(self, address: str, instance_id: str) -> None:
        self._roll.leave(address, instance_id)
        self._entries.set(self._roll.entries)

    def watch(self) -> AsyncIterator[frozenset[Entry]]:
        """Never ends; see ``Membership.watch``. ``run`` must run beside it."""
        return self._entries.follow()

    async def run(self) -> None:
        """Expire who does not renew, until cancelled."""
        interval, clock = self._beat.interval, asyncio.get_running_loop().time
        while True:
            began = clock()
            await asyncio.sleep(interval)
            for entry in self._roll.tick(weight(clock() - began, interval)):
                log.warning(
                    "registration expired", address=entry.address, instance=entry.instance_id
                )
            self._entries.set(self._roll.entries)
