"""What Baton's processes count for Prometheus. ``docs/metrics.md`` is the table of all of it.

Each figure is told by the one kind of process that knows it first hand, so that sums over a fleet
count nothing twice; what a gateway only hears of workers is a gauge, per gateway.

    process.py     the registry of a process: who it is, and its connections
    usage.py       its CPU time, memory and descriptors
    buckets.py     the borders of the histograms
    hand_offs.py   KV received, on the decode side
    server.py      the HTTP port of a process that has no other
"""

from __future__ import annotations
