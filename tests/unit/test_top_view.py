"""``baton top`` on a screen that nobody sees, its keys pressed by textual's pilot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from rich.text import Text
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from baton import live
from baton.top.app import Looks, Top
from baton.top.dialogs import Ask, ChooseRole, Confirm, Help
from baton.top.feed import Down, Said
from baton.top.palette import TUBES
from baton.top.panels import Notes
from tests.fakes import eventually
from tests.feeds import (
    BEGAN,
    FakeFeed,
    FakeOrders,
    decoded,
    first_token,
    placed,
    queued,
    slow,
    snapshot,
    worker,
)

P = worker("01aaaaaa", "prefill", queued_tokens=3120)
D0, D1, D2 = (
    worker(id, running=n) for id, n in (("02bbbbbb", 7), ("03cccccc", 9), ("04dddddd", 8))
)
#: Never by itself: pictures are taken when a test says so.
SELDOM = 3600.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A view, and what it is told."""

    top: Top
    pilot: Pilot[None]
    feed: FakeFeed
    orders: FakeOrders

    async def say(self, *said: Said) -> None:
        """Have the gateway say something, and the view show it."""
        self.feed.say(*said)
        await self.feed.heard()
        await self.show()

    async def show(self) -> None:
        self.top.show()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def rows(self, table: str) -> list[list[str]]:
        """What a table says."""
        grid = self.top.screen_stack[0].query_one(f"#{table}", DataTable)
        return [[cell.plain for cell in grid.get_row_at(row)] for row in range(grid.row_count)]

    def title(self, table: str) -> str:
        return str(self.top.screen_stack[0].query_one(f"#{table}", DataTable).border_title)

    def line(self, id: str) -> str:
        """A line of the summary."""
        shown = self.top.screen_stack[0].query_one(f"#{id}", Static)
        return str(shown.visual) if shown.display else ""

    @property
    def notes(self) -> str:
        """What the log says."""
        lines = self.top.screen_stack[0].query_one("#notes", Notes).lines
        return "\n".join(line.text for line in lines)

    @property
    def toasts(self) -> list[str]:
        return [toast.message for toast in self.top._notifications]


@asynccontextmanager
async def seen(
    *, size: tuple[int, int] = (120, 40), tube: str | None = None, motion: bool = True
) -> AsyncIterator[Seen]:
    feed, orders = FakeFeed(), FakeOrders()
    top = Top([feed], orders, Looks(refresh=SELDOM, tube=tube, motion=motion))
    async with top.run_test(size=size) as pilot:
        yield Seen(top, pilot, feed, orders)


async def test_a_fleet_at_work_is_shown() -> None:
    async with seen() as view:
        assert "gateway not heard" in view.line("about") or view.line("about") == ""
        await view.say(
            snapshot(P, D0, model="qwen3-0.6b", tokens_per_s=1210.4, open=41, waiting=3),
            queued("chatcmpl-5f0c", at=BEGAN - 3),
            placed("chatcmpl-5f0c", D0.id or "", P.id),
            first_token("chatcmpl-5f0c", 212.4),
            decoded("chatcmpl-5f0c", 31, 50.0, at=BEGAN + 0.5),
        )
        assert "qwen3-0.6b" in view.line("about") and "gateway heard" in view.line("about")
        assert "1,210 tokens/s  41 open  3 waiting" in view.line("flow")
        # Percentiles are within two percent.
        assert view.line("latency").startswith("TTFT p50 21") and "ITL p50 " in view.line("latency")
        assert view.line("alarm") == ""
        prefill, decode = view.rows("workers")
        assert prefill[:4] == ["01aaaaaa", "prefill", "healthy", "3,120"]
        assert decode[:6] == ["02bbbbbb", "decode", "healthy", "0", "7/64", "█▒···  20%"]
        [stream] = view.rows("streams")
        assert stream[:4] == ["5f0c", "decode", "812", "31/256"]
        assert stream[4] == "212 ms" and stream[5] == "01aaaaaa>02bbbbbb"
        assert "gw:8001 is there, with 2 workers" in view.notes
        assert (view.title("workers"), view.title("streams")) == ("workers 2", "streams 1")


async def test_the_slow_worker_is_the_first_thing_that_is_seen() -> None:
    async with seen(size=(80, 24)) as view:
        await view.say(snapshot(P, D0, D1, D2))
        await view.say(slow(D1))
        row = view.rows("workers")[0]
        assert (row[0], row[2], row[7]) == ("03cccccc", "SLOW x3.0", "66.0")
        alarm = "decode 03cccccc at 10.0.0.3:9001 is slow: step 66 ms, others 22 ms"
        assert view.line("alarm") == f"! {alarm}" and alarm in view.notes
        await view.say(Down("gone"))  # what nobody hears of is no alarm of its own
        assert view.line("alarm") == "! gw:8001 cannot be heard: gone"


async def test_a_gateway_that_is_lost_is_said_and_its_workers_stay_marked() -> None:
    async with seen() as view:
        await view.say(snapshot(P, D0), queued("r-1"))
        await view.say(Down("connection refused"))
        assert view.line("alarm") == "! gw:8001 cannot be heard: connection refused"
        assert [row[2] for row in view.rows("workers")] == ["unheard", "unheard"]
        assert view.rows("streams") == []
        await view.say(snapshot(P, D0))
        assert view.line("alarm") == ""
        assert [row[2] for row in view.rows("workers")] == ["healthy", "healthy"]
        assert "gw:8001 is back, with 2 workers" in view.notes


async def test_drain_asks_first() -> None:
    async with seen() as view:
        await view.say(snapshot(P, D0))
        await view.press("down", "d")
        assert isinstance(view.top.screen, Confirm)
        question = view.top.screen.query_one("#question", Static)
        assert str(question.visual) == "Drain decode worker 02bbbbbb at 10.0.0.2:9001?"
        await view.press("enter")  # the button that has the focus is no
        assert not isinstance(view.top.screen, Confirm) and view.orders.given == []
        await view.press("d", "escape", "d", "n")
        assert view.orders.given == []
        await view.press("d", "y")
        await view.show()
        assert view.orders.given == [("drain", "10.0.0.2:9001")]
        assert "10.0.0.2:9001 is drained" in view.notes
        assert view.toasts == ["10.0.0.2:9001 is drained"]


async def test_a_role_is_chosen_among_those_that_can_be_had() -> None:
    async with seen() as view:
        await view.say(snapshot(replace(D0, possible_roles=["decode"]), D1))
        await view.press("r", "enter")
        assert isinstance(view.top.screen, ChooseRole), "it can have no other"
        await view.press("escape")
        await view.press("down", "r", "enter")
        assert isinstance(view.top.screen, Confirm)
        await view.press("y")
        await view.show()
        assert view.orders.given == [("role", "10.0.0.3:9001", "prefill")]
        assert "10.0.0.3:9001 does prefill now" in view.notes


async def test_an_order_that_fails_is_said() -> None:
    async with seen() as view:
        view.orders.refuse = "10.0.0.1:9001: unavailable: [Errno 111] refused"
        await view.say(snapshot(P))
        await view.press("d", "y")
        await view.show()
        assert view.toasts == [view.orders.refuse]
        assert f"draining 10.0.0.1:9001 failed: {view.orders.refuse}" in view.notes
        await view.press("p", "h", "i", "enter")
        said = view.top.screen.query_one("#measured", Static)
        await eventually(lambda: str(said.visual) == view.orders.refuse)


async def test_orders_need_a_worker() -> None:
    async with seen() as view:
        await view.press("d", "r")
        assert view.toasts == ["no worker is at the cursor of the table of workers"] * 2


async def test_a_prompt_and_its_answer() -> None:
    async with seen() as view:
        await view.press("p", "enter")
        assert view.orders.given == [], "nothing was asked"
        view.orders.answer = ("Prefill ", "is [b]first[/b] \x1b[2J.")
        await view.press(*"What is d?", "enter")
        assert isinstance(view.top.screen, Ask)
        answer = view.top.screen.query_one("#answer", Static)
        whole = "Prefill is [b]first[/b] \N{SYMBOL FOR ESCAPE}[2J."
        await eventually(lambda: str(answer.visual) == whole)
        assert view.orders.given == [("ask", "What is d?")]
        await view.press("escape")
        assert not isinstance(view.top.screen, Ask)


async def test_the_picture_can_be_held() -> None:
    async with seen() as view:
        await view.say(snapshot(P))
        await view.press("space")
        assert "HELD" in view.line("held")
        await view.say(D0)
        assert len(view.rows("workers")) == 1
        await view.press("space")
        assert len(view.rows("workers")) == 2 and view.line("held") == ""


async def test_a_filter_holds_for_both_tables_and_the_events() -> None:
    async with seen() as view:
        await view.say(snapshot(P, D0, D1))
        await view.say(queued("r-1"), queued("r-2"), placed("r-2", D1.id or ""))
        await view.say(replace(D1, draining=True), replace(D0, draining=True))
        await view.press("slash", *"03CC")
        assert [row[0] for row in view.rows("workers")] == ["03cccccc"]
        assert [row[0] for row in view.rows("streams")] == ["2"]
        assert view.title("workers") == "workers 1 of 3  filter: 03CC"
        assert "03cccccc" in view.notes and "02bbbbbb" not in view.notes
        await view.press("enter", "d")
        assert isinstance(view.top.screen, Confirm), "keys are keys again"
        await view.press("n", "escape")
        assert len(view.rows("workers")) == 3 and "02bbbbbb" in view.notes


async def test_tables_are_sorted_by_any_column_and_the_cursor_stays_with_its_row() -> None:
    async with seen() as view:
        await view.say(snapshot(P, D0, D1, D2))
        await view.press("down")  # to 02bbbbbb
        assert [row[0][:2] for row in view.rows("workers")] == ["01", "02", "03", "04"]
        await view.press(*["s"] * 5)  # worker, role, state, queued, running
        assert [row[0][:2] for row in view.rows("workers")] == ["03", "04", "02", "01"]
        await view.press("S")
        assert [row[0][:2] for row in view.rows("workers")] == ["01", "02", "04", "03"]
        await view.press("d")
        question = view.top.screen.query_one("#question", Static)
        assert "02bbbbbb" in str(question.visual)


async def test_any_size_of_terminal_and_any_tube() -> None:
    async with seen(size=(80, 24), tube="green") as view:
        await view.say(snapshot(P, D0, D1, D2), *(queued(f"r-{n}") for n in range(30)))
        await view.say(replace(D0, state="out", reason="no beat for 3 s\nand [more]"))
        for size in ((200, 60), (1, 1), (80, 24)):
            await view.pilot.resize_terminal(*size)
            await view.press("g")
            for _ in range(3):
                view.top._beam()
            await view.pilot.pause()
        assert view.rows("workers")[0][2] == "OUT"
        assert "is out: no beat for 3 s and [more]" in view.line("alarm")
        await view.press("z", "z", "tab", "s", "tab", "tab", "question_mark")
        assert isinstance(view.top.screen, Help)
        await view.press("escape", "q")
    assert view.top.return_code == 0


async def test_without_motion_a_tube_stands_still() -> None:
    async with seen(tube="green", motion=False) as view:
        await view.say(snapshot(D0), live.Lost(events=3), replace(D0, state="out"))
        before = view.top.export_screenshot()
        view.top._beam()
        await view.pilot.pause()
        assert view.top.export_screenshot() == before


async def test_rows_that_stay_are_not_made_anew() -> None:
    async with seen() as view:
        await view.say(snapshot(D0, D1))
        grid = view.top.query_one("#workers", DataTable)
        kept: Text = grid.get_row_at(0)[0]
        await view.say(replace(D1, running=12))
        assert grid.get_row_at(0)[0] is kept
        assert view.rows("workers")[1][4] == "12/64"
        await view.press("g")  # the same words in other colours
        assert grid.get_row_at(0)[1].style == TUBES["green"].decode
