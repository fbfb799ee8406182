"""The terminal view itself: the scene on a screen, and keys."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import Footer, Input

from baton.identity import ROLES
from baton.top import columns
from baton.top.dialogs import Ask, ChooseRole, Confirm, Help
from baton.top.feed import Feed
from baton.top.fleet import View
from baton.top.glass import Glass
from baton.top.orders import OrderFailed, Orders
from baton.top.palette import PLAIN, TUBES, Palette
from baton.top.panels import MOST_ROWS, Grid, Notes, Summary, Words
from baton.top.scene import NOTES, Scene, Tone
from baton.top.streams import Stream

#: Seconds between two steps of a tube's beam.
_BEAM = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """How the view behaves."""

    refresh: float  #: seconds between two pictures
    tube: str | None  #: a key of TUBES
    motion: bool  #: whether a tube has a beam and noise


class Top(App[None]):
    """Follows feeds until it is left."""

    TITLE = "baton top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #workers { height: 2fr; min-height: 5; }
    #streams { height: 2fr; min-height: 4; }
    #notes { height: 1fr; min-height: 3; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #filter.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "drain", "Drain"),
        Binding("r", "role", "Role"),
        Binding("p", "ask", "Prompt"),
        Binding("space", "pause", "Pause"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("S", "reverse", "Reverse", show=False),
        Binding("z", "zoom", "Zoom"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("g", "tube", "Tube", show=False),
        Binding("escape", "all", "Show all", show=False),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, feeds: Sequence[Feed], orders: Orders, looks: Looks) -> None:
        super().__init__()
        self.scene = Scene([feed.name for feed in feeds])
        self._feeds = feeds
        self._orders = orders
        self._looks = looks
        self._glass: Glass | None = None
        self._palette = PLAIN
        self._noted = 0  #: notes that are shown or left out
        self._filter = ""
        self._held = False
        # By name, and not asked for: while a dialog is up the screen is another.
        self._summary = Summary()
        self._worker_grid = Grid[View]("workers", columns.WORKERS)
        self._stream_grid = Grid[Stream]("streams", columns.streams(self.scene.age))
        self._note_log = Notes("notes", NOTES)
        self._asked = Input(id="filter", placeholder="show only what has this in it")
        for palette in (PLAIN, *TUBES.values()):
            self.register_theme(palette.theme)

    def compose(self) -> ComposeResult:
        yield self._summary
        yield self._worker_grid
        yield self._stream_grid
        yield self._note_log
        yield self._asked
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self._wear(self._looks.tube)
        self._worker_grid.focus()
        for grid in (self._worker_grid, self._stream_grid):
            grid.fit(self.size.width)
        for feed in self._feeds:
            self._follow(feed)
        self.set_interval(self._looks.refresh, self.show)
        if self._looks.motion:
            self.set_interval(_BEAM, self._beam)

    @work
    async def _follow(self, feed: Feed) -> None:
        async with aclosing(feed.follow()) as said:
            async for one in said:
                self.scene.hear(feed.name, one)

    # -- the picture -----------------------------------------------------------------------------

    def show(self) -> None:
        """The scene as it is now; unless the picture is held."""
        self.scene.tick()
        if self._held:
            return
        workers = self.scene.workers()
        self._summary.show(
            self.scene.figures(), self.scene.history, self.scene.alarms(workers), self._palette
        )
        self._show_workers(workers)
        self._show_streams(self.scene.streams())
        self._show_notes()

    def _show_workers(self, workers: list[View]) -> None:
        kept = [
            view
            for view in workers
            if columns.matches(self._filter, view.name, view.role, view.state, view.worker.address)
        ]
        grid = self._worker_grid
        order = grid.sorted_by.order if grid.sorted_by else columns.by_trouble
        kept.sort(key=order, reverse=grid.reverse)
        title = self._title("workers", len(kept), len(workers))
        grid.show(title, [(view.key, view) for view in kept[:MOST_ROWS]])

    def _show_streams(self, streams: list[Stream]) -> None:
        kept = [
            s
            for s in streams
            if columns.matches(self._filter, s.request, s.phase, s.decode, s.prefill, s.gateway)
        ]
        grid = self._stream_grid
        if grid.sorted_by:
            kept.sort(key=grid.sorted_by.order, reverse=grid.reverse)
        else:  # the oldest first
            kept.sort(key=lambda stream: stream.arrived, reverse=grid.reverse)
        title = self._title("streams", len(kept), len(streams))
        grid.show(title, [(f"{s.gateway} {s.request}", s) for s in kept[:MOST_ROWS]])

    def _show_notes(self) -> None:
        """Those that are new."""
        notes = self.scene.notes
        new = min(self.scene.noted - self._noted, len(notes))
        self._noted = self.scene.noted
        for note in islice(notes, len(notes) - new, None):
            if columns.matches(self._filter, note.text):
                self._note_log.add(note, self._palette)
            if note.tone is Tone.BAD and self._glass is not None:
                self._glass.shock()

    def _show_anew(self) -> None:
        """All of it, as another filter or another tube has it."""
        self._note_log.clear()
        self._noted = self.scene.noted - len(self.scene.notes)
        self.show()

    def _title(self, what: str, kept: int, count: int) -> str:
        title = f"{what} {kept}" if kept == count else f"{what} {kept} of {count}"
        return f"{title}  filter: {self._filter}" if self._filter else title

    def on_resize(self, event: Resize) -> None:
        for grid in (self._worker_grid, self._stream_grid):
            grid.fit(event.size.width)

    # -- keys ------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self._held = not self._held
        self._summary.hold(self._held, self._palette)
        self.show()

    def action_filter(self) -> None:
        self._asked.add_class("asked")
        self._asked.focus()

    @on(Input.Changed, "#filter")
    def _filtered(self, event: Input.Changed) -> None:
        self._filter = event.value.strip()
        self._show_anew()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self._asked.set_class(bool(self._filter), "asked")
        self._worker_grid.focus()

    def action_all(self) -> None:
        self._asked.clear()
        self._asked.remove_class("asked")
        self._worker_grid.focus()

    def action_sort(self) -> None:
        self._table.sort_next()
        self.show()

    def action_reverse(self) -> None:
        self._table.reverse = not self._table.reverse
        self.show()

    def action_zoom(self) -> None:
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self.focused is not None:
            self.screen.maximize(self.focused)

    def action_help(self) -> None:
        self.push_screen(Help(self._palette))

    def action_ask(self) -> None:
        self.push_screen(Ask(self._orders, self._palette))

    @work
    async def action_drain(self) -> None:
        view = self._chosen()
        if view is not None and await self.push_screen_wait(
            Confirm(
                f"Drain {view.role} worker {view.name} at {view.worker.address}?",
                "It takes no new work, hands back what runs there, and leaves its gateways. Its "
                "process stays, to be stopped; to serve again it must be started again.",
            )
        ):
            address = view.worker.address
            await self._give(f"draining {address}", self._orders.drain(address))

    @work
    async def action_role(self) -> None:
        view = self._chosen()
        if view is None:
            return
        role = await self.push_screen_wait(ChooseRole(view.name, _roles(view), view.role))
        if role is not None and await self.push_screen_wait(
            Confirm(
                f"Have worker {view.name} at {view.worker.address} do {role}, not {view.role}?",
                "Its process and weights stay; what decodes there and may no longer goes on "
                "elsewhere.",
            )
        ):
            address = view.worker.address
            order = self._orders.set_role(address, role)
            await self._give(f"having {address} do {role}", order)

    async def _give(self, what: str, order: Coroutine[None, None, str]) -> None:
        """See an order through, and say what came of it."""
        self.scene.note(Tone.PLAIN, f"you: {what}")
        try:
            said = await order
        except OrderFailed as error:
            self.scene.note(Tone.BAD, f"{what} failed: {error}")
            self.notify(str(error), title=f"{what} failed", severity="error", markup=False)
        else:
            self.scene.note(Tone.GOOD, said)
            self.notify(said, markup=False)

    @property
    def _table(self) -> Grid[View] | Grid[Stream]:
        """That keys are for."""
        return self._stream_grid if self.focused is self._stream_grid else self._worker_grid

    def _chosen(self) -> View | None:
        """The worker at the cursor; None, and a word, when there is none."""
        key = self._worker_grid.chosen
        found = next((view for view in self.scene.workers() if view.key == key), None)
        if found is None:
            self.notify("no worker is at the cursor of the table of workers", severity="warning")
        return found

    # -- an old tube -----------------------------------------------------------------------------

    def action_tube(self) -> None:
        tubes = [None, *TUBES]
        worn = [None, *TUBES.values()].index(self._palette) if self._palette.beam else 0
        self._wear(tubes[(worn + 1) % len(tubes)])
        self._show_anew()

    def _wear(self, tube: str | None) -> None:
        """Take the look of this tube, or none."""
        palette: Palette = PLAIN if tube is None else TUBES[tube]
        self._palette, self.theme = palette, palette.theme.name
        moving = tube is not None and self._looks.motion
        self._glass = Glass(palette.beam, palette.faint, random.Random()) if moving else None
        for grid in (self._worker_grid, self._stream_grid):
            grid.palette = palette
            grid.zebra_stripes = tube is not None  # a tube's lines
        for pane in self._panes:
            pane.glass = self._glass
            pane.refresh()

    @property
    def _panes(self) -> list[Words | Grid[View] | Grid[Stream] | Notes]:
        """All that is seen through the glass."""
        return [*self._summary.query(Words), self._worker_grid, self._stream_grid, self._note_log]

    def _beam(self) -> None:
        if self._glass is None:
            return
        noisy, before = self._glass.noise > 0, self._glass.row
        self._glass.step(self.size.height)
        for pane in self._panes:
            top, height = pane.region.y, pane.region.height
            rows = (before - top, self._glass.row - top)
            if noisy or any(0 <= row < height for row in rows):
                pane.refresh()


def _roles(view: View) -> list[tuple[str, str]]:
    """Each role, and why the worker cannot have it."""
    possible = set(view.worker.possible_roles)
    return [
        (name, "" if {role.value for role in roles} <= possible else "it was not started for that")
        for name, roles in ROLES.items()
    ]
