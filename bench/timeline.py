"""A picture of one request's hand-off: when each layer was computed, sent, received, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.course import Course, Part
from bench.fleet import Fleet
from bench.requests import warm

_MS = 1e3
_HEIGHT = 0.8  # of a layer's bar, where layers are 1 apart
# Okabe and Ito's colours, which everyone can tell apart.
_COMPUTING, _WAITING, _TRAVELLING, _WRITING = "#c9d7e8", "#E69F00", "#CC79A7", "#009E73"
_COMPUTED, _LAST = "#0072B2", "#D55E00"
_LEGEND = {
    "computing (with attention and MLP of the layer before)": _COMPUTING,
    "computed, not sent yet": _WAITING,
    "sent, not received yet": _TRAVELLING,
    "received, being written": _WRITING,
}


async def measure(fleet: Fleet, tokens: int) -> dict[str, Course]:
    """One request of so many tokens over each transport."""
    await warm(fleet, tokens, tokens)
    asked = {transport: await fleet.hand_over(transport, tokens) for transport in fleet.decode}
    courses = fleet.courses()
    return {transport: courses[answer.request_id] for transport, answer in asked.items()}


def plot(path: Path, model: str, courses: Mapping[str, Course]) -> None:
    """Write a PNG: for each transport the whole request, and what became of each piece of KV.

    Raises OSError, and ValueError for a file name that ends in no format that matplotlib knows.
    """
    figure = Figure(figsize=(16, 1.2 + 5.6 * len(courses)), dpi=110, layout="constrained")
    axes = figure.subplots(len(courses), 2, squeeze=False, width_ratios=(3, 2))
    for (whole, pieces), (transport, course) in zip(axes, courses.items(), strict=True):
        _draw_whole(whole, course)
        _draw_pieces(pieces, course)
        _frame(whole, course, f"{transport}: the whole request", "the prompt's first layer began")
        _frame(pieces, course, f"{transport}: each chunk's piece", "it was computed")
    first = next(iter(courses.values()))
    figure.suptitle(
        f"One KV hand-off, layer by layer: {model}, {first.tokens} tokens in {first.chunks} chunks",
        fontsize=15,
    )
    patches = [Patch(color=colour, label=name) for name, colour in _LEGEND.items()]
    marks = axes[0][0].get_legend_handles_labels()[0]
    figure.legend(handles=[*patches, *marks], loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def _draw_whole(axes: Axes, course: Course) -> None:
    """A bar for each layer and chunk that was computed, a dot when its KV was written."""
    first, second = course.computed[0].at, course.computed[1].at
    origin = before = first - (second - first)  # about: only its end is traced
    for layer, _, at in course.computed:
        _bar(axes, layer, before - origin, at - origin, _COMPUTING)
        before = at
    for part in course.parts:
        _stretches(axes, part, part.layer, origin)
    axes.plot(
        [(part.written - origin) * _MS for part in course.parts],
        [part.layer for part in course.parts],
        linestyle="",
        marker="o",
        markersize=2.8,
        color=_WRITING,
        label="written",
    )
    for at, colour, label in (
        (course.first_token, _COMPUTED, "prompt computed, first token drawn"),
        (course.last_written, _LAST, "last block written"),
    ):
        dashes = (0, (4, 2))
        axes.axvline((at - origin) * _MS, color=colour, lw=1.4, ls=dashes, label=label)


def _draw_pieces(axes: Axes, course: Course) -> None:
    """For each layer a thin bar for each piece, from when it was computed."""
    pieces: dict[int, list[Part]] = {}
    for part in course.parts:
        pieces.setdefault(part.layer, []).append(part)
    for layer, parts in pieces.items():
        height = 0.84 / len(parts)
        for index, part in enumerate(parts):
            middle = layer - 0.42 + height * (index + 0.5)
            _stretches(axes, part, middle, part.computed, height * 0.9)
    last = max(course.parts, key=lambda part: part.written)
    axes.annotate(
        f"tail {course.tail * _MS:.1f} ms",
        ((last.written - last.computed) * _MS, last.layer + 0.3),
        xytext=(24, 0),
        textcoords="offset points",
        va="center",
        arrowprops={"arrowstyle": "->", "color": "#555555"},
        color="#333333",
    )


def _stretches(
    axes: Axes, part: Part, place: float, origin: float, height: float = _HEIGHT
) -> None:
    """What a piece went through after it was computed, one after the other."""
    sent = part.computed if part.sent is None else part.sent
    for since, until, colour in (
        (part.computed, sent, _WAITING),
        (sent, part.received, _TRAVELLING),
        (part.received, part.written, _WRITING),
    ):
        _bar(axes, place, since - origin, until - origin, colour, height)


def _bar(
    axes: Axes, place: float, since: float, until: float, colour: str, height: float = _HEIGHT
) -> None:
    axes.barh(place, (until - since) * _MS, left=since * _MS, height=height, color=colour)


def _frame(axes: Axes, course: Course, title: str, origin: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(f"milliseconds since {origin}")
    axes.set_ylabel("layer")
    axes.set_ylim(course.layers - 0.4, -0.6)  # the first layer on top
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
