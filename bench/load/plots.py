"""Pictures of a run: how long answers took, and which load met the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.load.statistics import LATENCIES, Estimate, Measured, Slo, scales

_MS = 1e3
# Okabe and Ito's colours, which everyone can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_AXIS = {
    "rate": "offered, requests per second",
    "concurrency": "requests at once",
    "speed": "speed of the trace",
}
#: Milliseconds: events that came together are no distance apart, which has no logarithm.
_LEAST = 0.1
#: Letters of a line that is as wide as a picture.
_TITLE = 130
#: Longest lists of levels that get a legend.
_NAMED = 8

Found = Sequence[tuple[Measured, Sequence[Estimate]]]


def draw(path: Path, title: str, found: Found, slo: Slo, wanted: float) -> None:
    """Write a picture of a run's levels.

    Raises OSError, and ValueError for a file name that ends in no format that matplotlib knows.
    """
    figure = Figure(figsize=(17, 9.5), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    names = [
        measured.level.label + ", refused in part" * any(one.doubt for one in estimates)
        for measured, estimates in found
    ]
    for place, name in zip(axes[0], ("TTFT", "TPOT", "ITL"), strict=True):
        _distribution(place, name, [measured for measured, _ in found], slo)
    if len(found) > 1:
        _over_load(axes[1][0], found, slo)
        _attained_over_load(axes[1][1], found, wanted)
    else:
        _course(axes[1][0], found[0][0], slo)
        _running(axes[1][1], found[0][0])
    _attained_over_scale(axes[1][2], [measured for measured, _ in found], slo, wanted)
    figure.suptitle(fill(title, _TITLE), fontsize=14)
    if len(found) <= _NAMED:
        lines = axes[0][0].get_lines()[: len(found)]
        figure.legend(lines, names, loc="outside lower center", ncols=_NAMED, frameon=False)
    figure.savefig(path)


def draw_beside(
    path: Path, title: str, named: Sequence[tuple[str, Measured]], slo: Slo, wanted: float
) -> None:
    """Write a picture of levels of several runs, each with its name. Raises as ``draw``."""
    figure = Figure(figsize=(17, 9.5), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    levels = [measured for _, measured in named]
    for place, name in zip((*axes[0], axes[1][0]), LATENCIES, strict=True):
        _distribution(place, name, levels, slo)
    _attained_over_scale(axes[1][1], levels, slo, wanted)
    axes[1][2].axis("off")
    axes[1][2].legend(
        axes[0][0].get_lines()[: len(named)], [name for name, _ in named], loc="center", fontsize=11
    )
    figure.suptitle(fill(title, _TITLE), fontsize=14)
    figure.savefig(path)


def _colour(index: int, count: int) -> str:
    return _COLOURS[index % len(_COLOURS)] if count <= len(_COLOURS) else f"C{index % 10}"


def _distribution(axes: Axes, name: str, levels: Sequence[Measured], slo: Slo) -> None:
    """The share of all that took no longer."""
    for index, measured in enumerate(levels):
        values = measured.samples[name].values * _MS
        shares = np.arange(1, len(values) + 1) / max(1, len(values))
        axes.step(values, shares, where="post", lw=1.8, color=_colour(index, len(levels)))
    axes.set_xscale("log")
    if axes.get_xlim()[0] < _LEAST:
        axes.set_xlim(left=_LEAST)
    _limit(axes, slo, name)
    _frame(axes, f"{name}: share that took no longer", "milliseconds")
    axes.set_ylim(0, 1.02)


def _limit(axes: Axes, slo: Slo, name: str, *, across: bool = False) -> None:
    if (limit := slo.limits.get(name)) is not None:
        line = axes.axhline if across else axes.axvline
        line(limit * _MS, color="#555555", lw=1.2, ls=(0, (4, 2)))
        axes.annotate(
            f"objective {limit * _MS:g} ms",
            (0.02, limit * _MS) if across else (limit * _MS, 0.03),
            xycoords=("axes fraction", "data") if across else ("data", "axes fraction"),
            xytext=(0, 4) if across else (-4, 0),
            textcoords="offset points",
            ha="left" if across else "right",
            color="#333333",
            fontsize=9,
        )


def _over_load(axes: Axes, found: Found, slo: Slo) -> None:
    """TTFT and TPOT with their intervals."""
    for colour, latency in zip(_COLOURS, ("TTFT", "TPOT"), strict=False):
        for style, percentile in (("-", "p50"), ("--", "p99")):
            name = f"{latency} {percentile}"
            points = [
                (measured.level.value, one.value, *one.interval)
                for measured, estimates in found
                for one in estimates
                if one.name == name and not one.doubt
            ]
            if points:
                at, values, low, high = zip(*points, strict=True)
                axes.plot(at, values, style, marker="o", ms=4, color=colour, label=name)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_yscale("log")
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)
        _limit(axes, slo, "TTFT", across=True)
        _limit(axes, slo, "TPOT", across=True)
    _frame(axes, "latency over load, with 95 % intervals", _axis(found), "milliseconds")


def _attained_over_load(axes: Axes, found: Found, wanted: float) -> None:
    """And the goodput."""
    points = [
        (measured.level.value, one.value, *one.interval)
        for measured, estimates in found
        for one in estimates
        if one.name == "attained" and not one.doubt
    ]
    if points:
        at, values, low, high = zip(*points, strict=True)
        axes.plot(at, values, marker="o", ms=4, color=_COLOURS[0])
        axes.fill_between(at, low, high, color=_COLOURS[0], alpha=0.15, lw=0)
    _wanted(axes, wanted)
    _frame(axes, "share of requests within all objectives", _axis(found))


def _attained_over_scale(axes: Axes, levels: Sequence[Measured], slo: Slo, wanted: float) -> None:
    if slo.limits:
        for index, measured in enumerate(levels):
            shares = [measured.met(slo, scale).mean() for scale in scales()]
            axes.plot(scales(), shares, lw=1.8, color=_colour(index, len(levels)))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _wanted(axes, wanted)
    else:
        axes.text(0.5, 0.5, "no objectives given", ha="center", transform=axes.transAxes)
    _frame(axes, "share within so many times the objectives", "times the objectives")


def _wanted(axes: Axes, wanted: float) -> None:
    axes.axhline(wanted, color="#555555", lw=1.2, ls=(0, (4, 2)))
    axes.set_ylim(0, 1.03)


def _course(axes: Axes, measured: Measured, slo: Slo) -> None:
    """Each request's TTFT when it was sent; those that failed at the bottom."""
    good = measured.good
    axes.scatter(
        measured.due[good], measured.each["TTFT"][good] * _MS, s=9, alpha=0.6, color=_COLOURS[0]
    )
    failed = measured.due[~good]
    if len(failed):
        axes.plot(
            failed,
            np.full(len(failed), 0.02),
            "x",
            color=_COLOURS[1],
            transform=axes.get_xaxis_transform(),
            label=f"{len(failed)} failed",
        )
        axes.legend(frameon=False)
    _limit(axes, slo, "TTFT", across=True)
    axes.set_ylim(bottom=0)
    _frame(axes, "TTFT of each request", "seconds since the beginning", "milliseconds")


def _running(axes: Axes, measured: Measured) -> None:
    """Requests under way, and tokens as they come."""
    answers = [one for one in measured.level.answers if one.good]
    edges = sorted([(one.sent, 1) for one in answers] + [(one.ended, -1) for one in answers])
    axes.step(
        [at for at, _ in edges],
        np.cumsum([change for _, change in edges]),
        where="post",
        color=_COLOURS[0],
        lw=1.2,
    )
    axes.set_ylim(bottom=0)
    _frame(axes, "under way, and events per second", "seconds since the beginning", "requests")
    axes.yaxis.label.set_color(_COLOURS[0])
    ticks = np.concatenate([one.ticks for one in answers]) if answers else np.empty(0)
    width = max(measured.seconds / 80, 0.1)
    counts, bins = np.histogram(ticks, np.arange(0, measured.seconds + width, width))
    right = axes.twinx()
    right.plot((bins[:-1] + bins[1:]) / 2, counts / width, color=_COLOURS[1], lw=1.2)
    right.set_ylim(bottom=0)
    right.set_ylabel("events per second", color=_COLOURS[1])
    right.spines["top"].set_visible(False)


def _axis(found: Found) -> str:
    return _AXIS[found[0][0].level.kind]


def _frame(axes: Axes, title: str, along: str, up: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(along)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
