"""Instances with which a transport is not used any more."""

from __future__ import annotations

from collections import OrderedDict

#: Instances that are remembered: each restart of a worker is another, for as long as we run.
MOST = 1024


class Struck:
    """Why each was given up; of very many the oldest are forgotten, who have long gone."""

    def __init__(self) -> None:
        self._why: OrderedDict[str, str] = OrderedDict()

    def add(self, instance_id: str, why: str) -> None:
        self._why[instance_id] = f"given up: {why}"
        self._why.move_to_end(instance_id)
        if len(self._why) > MOST:
            self._why.popitem(last=False)

    def why(self, instance_id: str) -> str:
        """Empty for one that may be used."""
        return self._why.get(instance_id, "")
