"""Which tests each of several processes gets (pytest-xdist).

A file of tests is for one of them. What starts clusters of processes is one share however many
files it has: on two cores clusters would be in each other's way, beside all else they mostly wait.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

CLUSTERS = ("tests/e2e/", "tests/faults/")


class Shares(LoadScopeScheduling):
    """In the order of collection (``--no-loadscope-reorder``), so that the clusters go first.

    ``--dist loadgroup`` would do, but with pytest 9.2 it sees no groups (pytest-xdist#1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if nodeid.startswith(CLUSTERS) else nodeid.partition("::")[0]
