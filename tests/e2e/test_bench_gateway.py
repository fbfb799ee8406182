"""bench.gateway counts what was streamed, of the gateway and of a bare server alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gateway import __main__ as bench
from bench.gateway import sides
from bench.gateway.sides import Load
from bench.records import Record

#: CPU time is counted in hundredths of a second: enough tokens that each side takes some.
LOADS = [
    Load("latency", streams=4, tokens=50, interval=0.002),
    Load("short, whole", streams=4, tokens=4, interval=0.001, whole=True),
]
#: More than the model's context.
TOO_LONG = Load("stream 1", streams=1, tokens=10**6, interval=0.01)


def value(found: list[Record], name: str) -> float:
    [one] = [record for record in found if record.name == name]
    return one.value


async def test_tokens_and_requests_of_each_side_are_counted(tmp_path: Path) -> None:
    found: list[Record] = []
    for opening in (sides.gateway(tmp_path, 2), sides.bare(tmp_path, "sse-starlette")):
        async with opening as side:
            for load in LOADS:
                seen = await side.ask(load, warm=0.2, seconds=1.5)
                records = bench.evaluate(side, load, [seen])
                found += records
                assert seen.answers > 0 and seen.tokens >= 4 * seen.answers - 16
                if load.whole:
                    assert value(records, "CPU per request") > 0
                else:
                    assert 0 < value(records, "tokens") < 3000, "no more than was offered"
                    assert value(records, "per event") >= 1
                    assert 0 < value(records, "p50") <= value(records, "p99")
            if side.name == "gateway":
                with pytest.raises(RuntimeError, match=r"a stream failed: .*together 10000"):
                    await side.ask(TOO_LONG, warm=0.0, seconds=0.1)
    beside = [one for one in bench.compared(found) if one.params["side"] == "gateway"]
    assert {one.name for one in beside} == {
        "per token / sse-starlette",
        "per request / sse-starlette",
        "p50 - sse-starlette",
        "p99 - sse-starlette",
    }
