"""What the screen is made of: the figures on top, two tables, the notes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import DataTable, RichLog, Sparkline, Static

from baton.top.columns import Column, fitting, milliseconds, short
from baton.top.glass import Glass
from baton.top.palette import PLAIN, Palette
from baton.top.scene import Figures, Note, Tone

R = TypeVar("R")

#: Rows of a table that are shown; a terminal has fewer.
MOST_ROWS = 200


class Tube(Widget):
    """A widget that is seen through a glass, where there is one."""

    glass: Glass | None = None

    def render_lines(self, crop: Region) -> list[Strip]:
        strips = super().render_lines(crop)
        return strips if self.glass is None else self.glass.look(strips, self.region.y + crop.y)


class Words(Tube, Static):
    """Some lines of text, never markup."""

    def __init__(self, id: str) -> None:
        super().__init__("", id=id, markup=False)


class Summary(Vertical):
    """How the whole of it is doing, in four lines at most."""

    DEFAULT_CSS = """
    Summary { height: auto; padding: 0 1; }
    Summary Horizontal { height: 1; }
    Summary #flow { width: auto; padding-right: 2; }
    Summary Sparkline { width: 1fr; }
    Summary #alarm, Summary #held { display: none; }
    Summary #alarm.raised, Summary #held.raised { display: block; }
    """

    def compose(self) -> ComposeResult:
        yield Words("about")
        yield Words("latency")
        with Horizontal():
            yield Words("flow")
            yield Sparkline([], id="history")
        yield Words("alarm")
        yield Words("held")

    def hold(self, held: bool, palette: Palette) -> None:
        """Say that what is shown is not what is now, or no longer."""
        text = Text(" HELD: space lets the picture go on ", palette.badge) if held else Text()
        self._write("held", text)
        self.query_one("#held", Words).set_class(held, "raised")

    def show(
        self, figures: Figures, history: Iterable[float], alarms: Sequence[Note], palette: Palette
    ) -> None:
        """``history``: tokens per second, every second; ``alarms``: the worst first."""
        self._write("about", _about(figures, palette))
        self._write("latency", _latency(figures, palette))
        self._write("flow", _flow(figures, palette))
        line = self.query_one(Sparkline)
        line.data = list(history)[-max(1, line.size.width) :]
        alarm = self.query_one("#alarm", Words)
        alarm.set_class(bool(alarms), "raised")
        self._write("alarm", _alarm(alarms, palette))

    def _write(self, id: str, text: Text) -> None:
        self.query_one(f"#{id}", Words).update(text)


def _about(figures: Figures, palette: Palette) -> Text:
    gateways = f"{figures.heard} of {figures.gateways} gateways heard"
    if figures.gateways == 1:
        gateways = "gateway heard" if figures.heard else "gateway not heard"
    every = figures.heard == figures.gateways
    return Text.assemble(
        ("BATON ", "bold"),
        (f"{figures.models or '-'}  ", ""),
        (f"placement {figures.placement or '-'}  ", palette.faint),
        (gateways, palette.good if every else palette.bad),
        no_wrap=True,
        overflow="ellipsis",
    )


def _latency(figures: Figures, palette: Palette) -> Text:
    def of(name: str, p50: float | None, p99: float | None) -> Text:
        return Text.assemble(
            (f"{name} ", "bold"),
            ("p50 ", palette.faint),
            (f"{milliseconds(p50):<8}", ""),
            ("p99 ", palette.faint),
            (f"{milliseconds(p99):<10}", ""),
        )

    return Text.assemble(
        of("TTFT", figures.ttft_p50, figures.ttft_p99),
        of("ITL", figures.itl_p50, figures.itl_p99),
        ("last 60 s", palette.faint),
        no_wrap=True,
        overflow="ellipsis",
    )


def _flow(figures: Figures, palette: Palette) -> Text:
    waiting = palette.warn if figures.waiting else ""
    return Text.assemble(
        (f"{short(figures.tokens_per_s)}", "bold"),
        (" tokens/s  ", palette.faint),
        (str(figures.open), "bold"),
        (" open  ", palette.faint),
        (str(figures.waiting), f"bold {waiting}".strip()),
        (" waiting  ", palette.faint),
        (short(figures.queued_tokens), "bold"),
        (" tokens queued", palette.faint),
        no_wrap=True,
    )


def _alarm(alarms: Sequence[Note], palette: Palette) -> Text:
    if not alarms:
        return Text()
    more = f"  (and {len(alarms) - 1} more)" if len(alarms) > 1 else ""
    worst = alarms[0]
    style = palette.bad if worst.tone is Tone.BAD else palette.badge
    said = Text(f"! {worst.text}".replace("\n", " "), style, no_wrap=True, overflow="ellipsis")
    return said.append(more, palette.faint)


class Grid(Tube, DataTable[Text], Generic[R]):
    """A table that is told its rows anew and changes what has changed."""

    DEFAULT_CSS = """
    Grid { height: 1fr; border-top: solid $primary 60%; border-title-style: bold;
           border-subtitle-color: $secondary; scrollbar-size-horizontal: 0; }
    Grid:focus { border-top: heavy $accent; }
    """

    def __init__(self, id: str, columns: Sequence[Column[R]]) -> None:
        super().__init__(id=id, cursor_type="row", cell_padding=1)
        self.palette = PLAIN
        self.sorted_by: Column[R] | None = None  #: None: by what the table is for
        self.reverse = False
        self._all = columns
        self._columns: list[Column[R]] = []
        self._shown: dict[str, list[Text]] = {}

    @property
    def chosen(self) -> str | None:
        """The key of the row at the cursor."""
        keys = list(self._shown)
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else None

    def fit(self, width: int) -> None:
        """Have the columns that a terminal of this width has room for."""
        wanted = fitting(self._all, width)
        if wanted != self._columns:
            self._columns = wanted
            self.clear(columns=True)
            self._shown = {}
            for column in wanted:
                self.add_column(column.title, width=column.width, key=column.title)

    def sort_next(self) -> None:
        """Order by the next column, after the last as at first."""
        choices = [None, *self._columns]
        at = choices.index(self.sorted_by) if self.sorted_by in choices else 0
        self.sorted_by = choices[(at + 1) % len(choices)]

    def show(self, rows: Sequence[tuple[str, R]]) -> None:
        """Rows by key, in their order. The cursor stays with its row."""
        wanted = {key: [c.cell(row, self.palette) for c in self._columns] for key, row in rows}
        if list(wanted) != list(self._shown):
            self._fill(wanted)
        else:
            for key, cells in wanted.items():
                for column, new, old in zip(self._columns, cells, self._shown[key], strict=True):
                    if new != old:
                        self.update_cell(key, column.title, new)
        self._shown = wanted
        order = "" if self.sorted_by is None else f"by {self.sorted_by.title}"
        self.border_subtitle = f"{order}{', reversed' if self.reverse else ''}".strip(", ")

    def _fill(self, rows: dict[str, list[Text]]) -> None:
        chosen, scrolled = self.chosen, self.scroll_y
        self.clear()
        for key, cells in rows.items():
            self.add_row(*cells, key=key)
        if chosen is not None and chosen in rows:
            self.move_cursor(row=self.get_row_index(chosen), animate=False, scroll=False)
        self.scroll_to(y=scrolled, animate=False, immediate=True)


class Notes(Tube, RichLog):
    """What happened, the latest at the bottom."""

    DEFAULT_CSS = """
    Notes { height: 1fr; border-top: solid $primary 60%; border-title-style: bold;
            scrollbar-size-horizontal: 0; }
    Notes:focus { border-top: heavy $accent; }
    """

    def __init__(self, id: str, most: int) -> None:
        super().__init__(id=id, max_lines=most, wrap=False, markup=False, min_width=0)

    def add(self, note: Note, palette: Palette) -> None:
        styles = {Tone.GOOD: palette.good, Tone.WARN: palette.warn, Tone.BAD: palette.bad}
        clock = time.strftime("%H:%M:%S ", time.localtime(note.at))
        text = note.text.replace("\n", " ")
        self.write(Text.assemble((clock, palette.faint), (text, styles.get(note.tone, ""))))
