"""The gateway's file descriptors, in a process whose limits may be lowered for good."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gateway.descriptors import RESERVE

_PROGRAM = """
import json, resource, sys
from gateway.descriptors import room_for
soft, hard, asked = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
room = room_for(asked)
json.dump([room, *resource.getrlimit(resource.RLIMIT_NOFILE)], sys.stderr)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "room", "after"),
    [
        (600, 2000, 1000, 1000, 1000 + RESERVE),
        (600, 1000, 1000, 1000 - RESERVE, 1000),
        (1800, 2000, 1000, 1000, 1800),
        (300, 400, 1000, 1, 400),
    ],
)
def test_as_many_as_the_process_may_have(
    soft: int, hard: int, asked: int, room: int, after: int
) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(soft), str(hard), str(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stderr) == [room, after, hard]
    assert ("room for fewer connections" in done.stdout) == (room < asked)
