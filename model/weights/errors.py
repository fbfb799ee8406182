"""The one error of a model directory that cannot be served."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of a kind this build does not implement.

    The message names the file and, where it applies, the tensor or field, what was expected
    and what was found. It is raised before anything is served.
    """
