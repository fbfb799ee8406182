"""Requests made of a trace: which share what, how long they are, and when they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.replay import Answer, Balance, Outcome

from bench.trace import Line, Scale, TraceError, most_reusable, read, requests

SCALE = Scale(length=32, output=16, speed=2.0, vocabulary=256)


def lines(*ids: tuple[int, ...], last: int = 512) -> list[Line]:
    """Two requests of each step; the last block of each has so many tokens."""
    return [
        Line(3000.0 * (n // 2), 512 * (len(one) - 1) + last, 100, one) for n, one in enumerate(ids)
    ]


def test_requests_share_what_their_ids_share() -> None:
    one, two, three = requests(lines((0, 1, 2), (0, 1, 3), (0, 4), last=100), SCALE)
    assert [len(each.prompt) for each in (one, two, three)] == [35, 35, 19]
    assert one.prompt[:32] == two.prompt[:32] and one.prompt[32:] != two.prompt[32:]
    assert three.prompt[:16] == one.prompt[:16] and three.prompt[16:] != one.prompt[16:19]
    assert one.conversation == two.conversation != three.conversation
    assert {each.max_tokens for each in (one, two, three)} == {6}
    assert [each.at for each in (one, two, three)] == [0.0, 0.75, 1.5]


def test_what_one_cache_would_have() -> None:
    asked = list(requests(lines((0, 1, 2), (0, 1, 3), (0, 4)), SCALE))
    assert most_reusable(asked, 16) == pytest.approx((32 + 16) / (48 + 48 + 32))
    assert most_reusable([], 16) == 0.0


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"hash_ids": [1]}, "line 1 has 1 hash_ids for 600 tokens, but a block has 512"),
        ({"hash_ids": None}, "line 1 is no request: TypeError"),
        ({"input_length": "many"}, "line 1 is no request: ValueError"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    written = {"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(written | over) + "\n")
    with pytest.raises(TraceError, match=said):
        read(path, 1)
    path.write_text((json.dumps(written) + "\n") * 3)
    assert len(read(path, 2)) == 2


def test_what_a_run_comes_to() -> None:
    balance = Balance()
    balance.add([10, 0])
    balance.add([3, 7])
    balance.add([])
    answers = [Answer(number / 100, 10, 4) for number in range(101)]
    found = Outcome(answers, balances={"prefill": balance}).records({}, 0.5)
    assert {one.name: one.value for one in found} == pytest.approx(
        {
            "hit": 0.4,
            "reusable": 0.5,
            "TTFT p50": 500.0,
            "TTFT p90": 900.0,
            "TTFT p99": 990.0,
            "imbalance prefill": 1.7,
        }
    )
