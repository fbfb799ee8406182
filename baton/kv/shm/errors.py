"""Why shared memory is not used."""

from __future__ import annotations


class Unusable(Exception):
    """Shared memory cannot be used, here or with this peer; another transport can.

    Never reaches a request: it becomes the reason of a downgrade.
    """
