"""What the screen is made of: the figures on top, two tables, the notes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Generic, Literal, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.geometry import Region
from textual.strip import Strip
from textual.widgets import DataTable, RichLog, Sparkline, Static

from baton.top.columns import Column, fitting, milliseconds, short
from baton.top.glass import Glass
from baton.top.palette import PLAIN, Palette
from baton.top.scene import Figures, Note, Tone

R = TypeVar("R")

#: Rows of a table that are shown; a terminal has fewer.
MOST_ROWS = 200


class Words(Static):
    """A line of text, never markup."""

    DEFAULT_CSS = "Words { text-wrap: nowrap; text-overflow: ellipsis; }"

    glass: Glass | None = None  #: that it is seen through

    def __init__(self, id: str) -> None:
        super().__init__("", id=id, markup=False)
        self._said = Text()

    def say(self, text: Text) -> None:
        """The line as it is now; nothing is drawn where it is as it was."""
        if not _same(text, self._said):
            self._said = text
            self.update(text)

    def render_lines(self, crop: Region) -> list[Strip]:
        return _through(self.glass, super().render_lines(crop), self.region.y + crop.y)


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
        # Its scale is from the least to the most: from nothing on, here.
        line.data = [0.0, *list(history)[-max(1, line.size.width - 1) :]]
        alarm = self.query_one("#alarm", Words)
        alarm.set_class(bool(alarms), "raised")
        self._write("alarm", _alarm(alarms, palette))

    def _write(self, id: str, text: Text) -> None:
        self.query_one(f"#{id}", Words).say(text)


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
    )


def _alarm(alarms: Sequence[Note], palette: Palette) -> Text:
    if not alarms:
        return Text()
    worst, count = alarms[0], f" 1 of {len(alarms)}" if len(alarms) > 1 else ""
    style = palette.bad if worst.tone is Tone.BAD else palette.badge
    return Text(f"!{count} {worst.text}".replace("\n", " "), style)


class Grid(DataTable[Text], Generic[R]):
    """A table that is told its rows anew and changes what has changed."""

    DEFAULT_CSS = """
    Grid { border-top: solid $primary 60%; border-title-style: bold;
           border-title-color: $foreground; border-subtitle-color: $secondary;
           scrollbar-size-horizontal: 0; scrollbar-size-vertical: 1; }
    Grid:focus { border-top: heavy $accent; }
    Grid > .datatable--cursor { background: $primary 15%; color: $foreground; }
    Grid:focus > .datatable--cursor { background: $primary 40%; }
    """

    glass: Glass | None = None

    def __init__(self, id: str, columns: Sequence[Column[R]]) -> None:
        super().__init__(
            id=id, cursor_type="row", cell_padding=1, cursor_foreground_priority="renderable"
        )
        self.palette = PLAIN
        self.sorted_by: Column[R] | None = None  #: None: by what the table is for
        self.reverse = False
        self._all = columns
        self._columns: list[Column[R]] = []
        self._shown: dict[str, list[Text]] = {}

    def render_lines(self, crop: Region) -> list[Strip]:
        return _through(self.glass, super().render_lines(crop), self.region.y + crop.y)

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
                title = Text(column.title, justify=_side(column))
                self.add_column(title, width=column.width, key=column.title)

    def sort_next(self) -> None:
        """Order by the next column, after the last as at first."""
        choices = [None, *self._columns]
        at = choices.index(self.sorted_by) if self.sorted_by in choices else 0
        self.sorted_by = choices[(at + 1) % len(choices)]

    def show(self, title: str, rows: Sequence[tuple[str, R]]) -> None:
        """Rows by key, in their order. The cursor stays with its row."""
        wanted = {key: [self._cell(c, row) for c in self._columns] for key, row in rows}
        if list(wanted) != list(self._shown):
            self._fill(wanted)
        else:
            for key, cells in wanted.items():
                for column, new, old in zip(self._columns, cells, self._shown[key], strict=True):
                    if not _same(new, old):
                        self.update_cell(key, column.title, new)
        self._shown = wanted
        order = "" if self.sorted_by is None else f"by {self.sorted_by.title}"
        order = f"{order}{', reversed' if self.reverse else ''}".strip(", ")
        if (title, order) != (self.border_title, self.border_subtitle):
            self.border_title, self.border_subtitle = title, order

    def _cell(self, column: Column[R], row: R) -> Text:
        text = column.cell(row, self.palette)
        text.justify = _side(column)
        return text

    def _fill(self, rows: dict[str, list[Text]]) -> None:
        chosen, scrolled = self.chosen, self.scroll_y
        self.clear()
        for key, cells in rows.items():
            self.add_row(*cells, key=key)
        if chosen is not None and chosen in rows:
            self.move_cursor(row=self.get_row_index(chosen), animate=False, scroll=False)
        self.scroll_to(y=scrolled, animate=False, immediate=True)


def _same(one: Text, other: Text) -> bool:
    """Whether they look the same; that ``==`` finds texts equal says nothing of their style."""
    return one == other and one.style == other.style


def _side(column: Column[R]) -> Literal["left", "right"]:
    return "right" if column.number else "left"


class Notes(RichLog):
    """What happened, the latest at the bottom."""

    DEFAULT_CSS = """
    Notes { border-top: solid $primary 60%; border-title-style: bold;
            border-title-color: $foreground; background: $surface; padding: 0 1;
            scrollbar-size-horizontal: 0; scrollbar-size-vertical: 1; }
    Notes:focus { border-top: heavy $accent; }
    """

    glass: Glass | None = None

    def __init__(self, id: str, most: int) -> None:
        super().__init__(id=id, max_lines=most, wrap=True, markup=False, min_width=0)
        self.border_title = "events"

    def render_lines(self, crop: Region) -> list[Strip]:
        return _through(self.glass, super().render_lines(crop), self.region.y + crop.y)

    def add(self, note: Note, palette: Palette) -> None:
        styles = {Tone.GOOD: palette.good, Tone.WARN: palette.warn, Tone.BAD: palette.bad}
        clock = time.strftime("%H:%M:%S ", time.localtime(note.at))
        text = note.text.replace("\n", " ")
        line = Text.assemble((clock, palette.faint), (text, styles.get(note.tone, "")))
        self.write(line, width=self.scrollable_content_region.width or None)


def _through(glass: Glass | None, strips: list[Strip], top: int) -> list[Strip]:
    """Lines from row ``top`` of the screen on, as they are seen."""
    return strips if glass is None else glass.look(strips, top)
