"""Records as a picture: a pane for each number, a line or a group of bars for each variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.records import Param, Record

# Okabe and Ito's colours, which everyone can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: A line's values over one another from which on they go over a logarithmic axis.
_WIDE = 50
#: Panes beside one another.
_BESIDE = 3


@dataclass(slots=True)
class Line:
    """Of one variant. ``low`` and ``high`` are ends of intervals, or empty."""

    label: str
    x: list[Param] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    colour: str = ""  #: of another line of the same; empty: the next one
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Pane:
    """``x`` is what its lines go over; words become groups of bars."""

    title: str
    x: str
    lines: Sequence[Line]
    log: bool = False


def pane(found: Iterable[Record], name: str, over: str, by: str = "", *, log: bool = False) -> Pane:
    """Of all records of that name: their values over one parameter, a line for each value of
    another."""
    lines, unit = dict[Param, Line](), ""
    for record in found:
        if record.name == name and over in record.params:
            key = record.params.get(by, "")
            line = lines.setdefault(key, Line(str(key)))
            line.x.append(record.params[over])
            line.y.append(record.value)
            unit = record.unit
    return Pane(name if unit == "ratio" else f"{name}, {unit}", over, [*lines.values()], log)


def draw(path: Path, title: str, panes: Sequence[Pane]) -> None:
    """Raises OSError, and ValueError for a file name that ends in no format that matplotlib
    knows."""
    columns = min(_BESIDE, len(panes))
    rows = math.ceil(len(panes) / columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows + 0.6), dpi=110, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, one in zip(places, panes, strict=False):
        _draw(place, one)
    for place in places[len(panes) :]:
        place.axis("off")
    handles, labels = places[0].get_legend_handles_labels()
    if any(labels):
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path)


def _draw(axes: Axes, one: Pane) -> None:
    words = any(isinstance(x, str) for line in one.lines for x in line.x)
    _bars(axes, one) if words else _lines(axes, one)
    axes.set_title(one.title, fontsize=10)
    if one.log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, one: Pane) -> None:
    for index, line in enumerate(one.lines):
        colour = line.colour or COLOURS[index % len(COLOURS)]
        x = [float(value) for value in line.x]
        dashed = line.dashed or index >= len(COLOURS)  # told apart from one of the same colour
        axes.plot(
            x, line.y, marker="o", ms=4, color=colour, ls="--" if dashed else "-",
            label=line.label,
        )  # fmt: skip
        if 0 < _WIDE * min(x) <= max(x):
            axes.set_xscale("log", base=2)
        if line.low:
            axes.fill_between(x, line.low, line.high, color=colour, alpha=0.2, lw=0)
    axes.set_xlabel(one.x, fontsize=9)


def _bars(axes: Axes, one: Pane) -> None:
    names = list(dict.fromkeys(str(x) for line in one.lines for x in line.x))
    width = 0.8 / len(one.lines)
    for index, line in enumerate(one.lines):
        colour = line.colour or COLOURS[index % len(COLOURS)]
        left = (index + 0.5) * width - 0.4
        places = [names.index(str(x)) + left for x in line.x]
        axes.bar(places, line.y, width, color=colour, label=line.label)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=20 if len(names) > 4 else 0)
