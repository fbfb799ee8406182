"""Attainment over rate, and what it is made of, of each system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from bench.load.statistics import Slo
from bench.peers.tried import Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which everyone can tell apart.
_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#000000", "#D55E00", "#E69F00")


def draw(path: Path, title: str, tried: Sequence[Tried], slo: Slo, wanted: float) -> None:
    """Raises OSError, and ValueError for a file name that ends in no format that is known."""
    from matplotlib.figure import Figure  # here: only who draws needs it

    figure = Figure(figsize=(15, 5), dpi=110, layout="constrained")
    share, first, per_token = figure.subplots(1, 3)
    _lines(share, tried, "attained", band=True)
    share.axhline(wanted, color="#555555", lw=1.2, ls=(0, (4, 2)))
    share.set_ylim(0, 1.03)
    share.set_title("share of requests within both objectives", loc="left", fontsize=11)
    for axes, name, limit in ((first, "TTFT", slo.ttft), (per_token, "TPOT", slo.tpot)):
        _lines(axes, tried, f"{name} p90")
        axes.set_yscale("log")
        if limit is not None:
            axes.axhline(limit * 1e3, color="#555555", lw=1.2, ls=(0, (4, 2)))
        axes.set_title(f"{name} p90, milliseconds; the objective dashed", loc="left", fontsize=11)
    for axes in (share, first, per_token):
        axes.set_xlabel("offered, requests per second")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6")
    share.legend(frameon=False, loc="lower left")
    figure.suptitle(fill(title, 150), fontsize=10)
    figure.savefig(path)


def _lines(axes: Axes, tried: Sequence[Tried], name: str, *, band: bool = False) -> None:
    systems = dict.fromkeys(one.system for one in tried)
    for colour, system in zip(_COLOURS, systems, strict=False):
        points = [
            (one.rate, value.value, *value.interval)
            for one in tried
            if one.system == system and (value := one[name]) is not None and not value.doubt
        ]
        if points:
            rates, values, low, high = zip(*points, strict=True)
            axes.plot(rates, values, marker="o", ms=4, color=colour, label=system)
            if band:
                axes.fill_between(rates, low, high, color=colour, alpha=0.12, lw=0)
