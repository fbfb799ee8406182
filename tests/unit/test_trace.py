"""Requests made of a trace: which share what, how long they are, and when they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.trace import Line, Scale, TraceError, most_reusable, read, requests

SCALE = Scale(length=1 / 32, output=1 / 16, speed=2.0)


def lines(*ids: tuple[int, ...], last: int = 512) -> list[Line]:
    """One every 1.5 seconds; the last block of each has so many tokens."""
    return [Line(1.5 * n, 512 * (len(one) - 1) + last, 100, one) for n, one in enumerate(ids)]


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


AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.6805900,374,44
2023-11-17 00:00:01.1805900,396,109
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,0,1087,API log
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (AZURE, [Line(0.0, 374, 44), Line(1.5, 396, 109)]),
        (BURSTGPT, [Line(0.0, 472, 18), Line(40.5, 1087, 0)]),
    ],
)
def test_tables(tmp_path: Path, text: str, found: list[Line]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    lines = read(path)
    assert [line.at for line in lines] == pytest.approx([line.at for line in found], abs=1e-5)
    assert [(line.input_length, line.output_length) for line in lines] == [
        (line.input_length, line.output_length) for line in found
    ]
    one, other = requests(lines, Scale(length=0.1, output=0.01, prompt_cap=40))
    shrunk = [min(40, round(line.input_length * 0.1)) for line in lines]
    assert [len(one.prompt), len(other.prompt)] == shrunk
    assert one.max_tokens == other.max_tokens == 1
    assert one.prompt[:8] != other.prompt[:8] and one.conversation is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "the columns are a, b; wanted are TIMESTAMP"),
        ("", "the columns are none"),
        (AZURE + "yesterday,1,2\n", "line 4 is no request: ValueError"),
        (BURSTGPT + "1,GPT-4,1,1,2,API log\n", "request 3 came before request 2"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        read(path)


def test_steps_are_spread_and_blocks_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    at = {"input_length": 10, "output_length": 1, "hash_ids": [1]}
    path.write_text("".join(json.dumps(at | {"timestamp": t}) + "\n" for t in (3000, 3000, 6000)))
    assert [line.at for line in read(path)] == [0.0, 1.5, 3.0]
    with pytest.raises(TraceError, match=r"cannot be made 0\.3 times as long: that is 153\.6"):
        list(requests(read(path), Scale(length=0.3)))


def test_another_seed_has_other_contents_of_the_same_shape() -> None:
    first, second = (
        list(requests(lines((0, 1), (0, 2)), Scale(length=1 / 32, seed=seed))) for seed in (0, 1)
    )
    assert first[0].prompt[:16] == first[1].prompt[:16] != second[0].prompt[:16]
    assert most_reusable(first, 16) == most_reusable(second, 16)
