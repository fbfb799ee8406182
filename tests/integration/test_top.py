"""``baton top`` at a gateway and workers in this process, over real HTTP and gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from textual.widgets import DataTable, Static

from baton.client import AsyncClient
from baton.tls.links import PLAIN
from baton.top.app import Looks, Top
from baton.top.feed import LiveFeed
from baton.top.orders import FleetOrders, OrderFailed
from model.engine.mock_runner import CostModel
from tests.fakes import FakeWorker, answering, eventually, write_checkpoint
from tests.gateways import Gateway, serving
from tests.workers import CALM, CALM_GATEWAY, Cluster, cluster

#: Slow enough that an answer is seen on its way.
COST = CostModel(step_s=0.005, prefill_token_s=1e-4)
LOOKS = Looks(refresh=0.1, tube=None, motion=False)
#: A stream that has three of its nine tokens: where it is, its prompt, its answer.
SHOWN = ["decode", "2", "3/9"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy"))


def rows(top: Top, table: str) -> list[list[str]]:
    grid = top.screen_stack[0].query_one(f"#{table}", DataTable)
    return [[cell.plain for cell in grid.get_row_at(row)] for row in range(grid.row_count)]


def noted(top: Top, text: str) -> bool:
    return any(text in note.text for note in top.scene.notes)


@asynccontextmanager
async def fleet(checkpoint: Path) -> AsyncIterator[tuple[Gateway, Cluster]]:
    async with (
        cluster(1, 2, cost=COST, local_prefill_queue=0, **CALM) as c,
        serving(
            checkpoint,
            [],
            healthy=3,
            served_model_name="mock",
            **CALM_GATEWAY,
            decode=[w.address for w in c.decode],
            prefill=[w.address for w in c.prefill],
        ) as gateway,
    ):
        yield gateway, c


async def test_a_fleet_is_watched_and_steered(checkpoint: Path) -> None:
    async with (
        fleet(checkpoint) as (gateway, c),
        httpx.AsyncClient(timeout=20) as http,
        AsyncClient(gateway.admin_url, patience=2.0) as client,
    ):
        orders = FleetOrders(PLAIN, client, drain_grace=0.0, role_grace=0.0)
        top = Top([LiveFeed(gateway.admin_url, http)], orders, LOOKS)
        async with top.run_test(size=(100, 30)) as pilot:
            await eventually(lambda: len(rows(top, "workers")) == 3)
            assert {row[1] for row in rows(top, "workers")} == {"prefill", "decode"}

            await pilot.press("p", *"hi", "enter")
            said = top.screen.query_one("#measured", Static)
            await eventually(lambda: "first text after" in str(said.visual), 30)
            assert len(str(top.screen.query_one("#answer", Static).visual)) > 10
            figures = top.scene.figures()
            assert figures.ttft_p50 is not None and figures.itl_p50 is not None
            await pilot.press("escape")
            await eventually(lambda: rows(top, "streams") == [])

            name = choose(top, "decode")
            changing = next(w for w in c.decode if w.instance_id[:8] == name)
            await pilot.press("r", "down", "enter", "y")  # behind prefill: both
            await eventually(lambda: noted(top, f"{changing.address} does both now"))
            await eventually(lambda: "both" in {row[1] for row in rows(top, "workers")})
            assert choose(top, "both") == name
            await pilot.press("d", "y")
            await eventually(lambda: noted(top, f"{changing.address} is drained"))

            gateway.service.broadcast.close()
            await eventually(lambda: noted(top, "cannot be heard: the gateway ended the feed"))
            await eventually(lambda: noted(top, "is back, with"))
            await pilot.press("q")
        assert top.return_code == 0


async def test_a_stream_is_shown_while_it_runs(checkpoint: Path) -> None:
    worker = FakeWorker(script=answering("hello", pause=0.3, stop_after=3), local_prefill=True)
    async with (
        serving(checkpoint, [worker]) as gateway,
        httpx.AsyncClient(timeout=20) as http,
        AsyncClient(gateway.url) as client,
    ):
        orders = FleetOrders(PLAIN, client, drain_grace=0.0, role_grace=0.0)
        top = Top([LiveFeed(gateway.admin_url, http)], orders, LOOKS)
        async with top.run_test(size=(100, 30)):
            await eventually(lambda: len(rows(top, "workers")) == 1)
            async with client.generate("hi", stream=True, max_new_tokens=9) as stream:
                await anext(stream)
                await eventually(lambda: [row[1:4] for row in rows(top, "streams")] == [SHOWN])
            await eventually(lambda: rows(top, "streams") == [])


def choose(top: Top, role: str) -> str:
    """Put the cursor at the first worker of a role; its name."""
    found = next(i for i, row in enumerate(rows(top, "workers")) if row[1] == role)
    top.query_one("#workers", DataTable).move_cursor(row=found)
    return rows(top, "workers")[found][0]


async def test_orders_that_nobody_takes() -> None:
    async with AsyncClient("http://127.0.0.1:1", patience=0.1) as client:
        orders = FleetOrders(PLAIN, client, drain_grace=0.0, role_grace=0.0)
        with pytest.raises(OrderFailed, match=r"127\.0\.0\.1:1: unavailable: "):
            await orders.drain("127.0.0.1:1")
        with pytest.raises(OrderFailed, match=r"127\.0\.0\.1:1: unavailable: "):
            await orders.set_role("127.0.0.1:1", "both")
        with pytest.raises(OrderFailed, match="gateway_lost: "):
            await anext(orders.ask("hi"))
