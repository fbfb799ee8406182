"""A picture of one request's hand-off: when each layer was computed, sent, received, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.course import Course
from bench.fleet import Fleet
from bench.requests import warm

_MS = 1e3
#: Layers of the last chunk that are shown enlarged.
_CLOSE_UP = 6

# Okabe and Ito's colours, which everyone can tell apart.
_COMPUTING, _WAITING, _TRAVELLING, _WRITING = "#c9d7e8", "#E69F00", "#CC79A7", "#009E73"
_COMPUTED, _WRITTEN = "#0072B2", "#D55E00"
_LEGEND = {
    "computing": _COMPUTING,
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
    """Write a PNG: a line of two panels for each transport. Raises OSError, and ValueError for a
    file name that says another format than matplotlib knows."""
    figure = Figure(figsize=(16, 0.9 + 5.6 * len(courses)), dpi=110, layout="constrained")
    axes = figure.subplots(len(courses), 2, squeeze=False, width_ratios=(3, 2))
    for line, (transport, course) in zip(axes, courses.items(), strict=True):
        whole, close_up = line
        _draw(whole, course)
        _draw(close_up, course)
        _frame(whole, course, f"{transport}: the whole request")
        _frame(close_up, course, f"{transport}: the last layers of the last chunk")
        _enlarge(close_up, course)
    first = next(iter(courses.values()))
    figure.suptitle(
        f"One KV hand-off, layer by layer: {model}, {first.tokens} tokens in {first.chunks} chunks",
        fontsize=15,
    )
    patches = [Patch(color=colour, label=name) for name, colour in _LEGEND.items()]
    lines = axes[0][0].get_legend_handles_labels()[0]
    figure.legend(handles=[*patches, *lines], loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path)


def _draw(axes: Axes, course: Course) -> None:
    """A bar per layer and chunk, in the colours of what its KV was doing."""
    origin = _origin(course)
    before = origin
    for layer, _, at in course.computed:
        _bar(axes, layer, before - origin, at - origin, _COMPUTING)
        before = at
    for part in course.parts:
        sent = part.computed if part.sent is None else part.sent
        for since, until, colour in (
            (part.computed, sent, _WAITING),
            (sent, part.received, _TRAVELLING),
            (part.received, part.written, _WRITING),
        ):
            _bar(axes, part.layer, since - origin, until - origin, colour)
    _mark(axes, course.first_token - origin, _COMPUTED, "prompt computed: first token")
    _mark(axes, _end(course) - origin, _WRITTEN, "last block written")


def _bar(axes: Axes, layer: int, since: float, until: float, colour: str) -> None:
    axes.barh(layer, (until - since) * _MS, left=since * _MS, height=0.8, color=colour)


def _mark(axes: Axes, at: float, colour: str, label: str) -> None:
    axes.axvline(at * _MS, color=colour, linewidth=1.4, linestyle=(0, (4, 2)), label=label)


def _frame(axes: Axes, course: Course, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("milliseconds since the prompt's first layer")
    axes.set_ylabel("layer")
    axes.set_ylim(course.layers - 0.4, -0.6)  # the first layer on top
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)


def _enlarge(axes: Axes, course: Course) -> None:
    """Show the last layers alone, from when the first of them was begun."""
    shown = min(_CLOSE_UP, course.layers)
    origin, begun = _origin(course), course.computed[-shown - 1 :][0].at
    until = max(_end(course), course.first_token)
    margin = (until - begun) * 0.03
    axes.set_xlim((begun - origin - margin) * _MS, (until - origin + margin) * _MS)
    axes.set_ylim(course.layers - 0.4, course.layers - shown - 0.6)
    axes.set_yticks(range(course.layers - shown, course.layers))
    tail = f"tail {course.tail * _MS:.1f} ms"
    axes.annotate(
        tail,
        ((course.computed[-1].at - origin) * _MS, course.layers - 1),
        xytext=(0, 26),
        textcoords="offset points",
        ha="right",
        arrowprops={"arrowstyle": "->", "color": "#555555"},
        color="#333333",
    )


def _origin(course: Course) -> float:
    """When the first layer was begun: about as long before its end as the second took."""
    first, second = course.computed[0].at, course.computed[1].at
    return first - (second - first)


def _end(course: Course) -> float:
    return max(part.written for part in course.parts)
