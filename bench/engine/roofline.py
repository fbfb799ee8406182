"""A picture of how near each case comes to what the hardware allows: a roofline.

S. Williams, A. Waterman, D. Patterson: Roofline, an insightful visual performance model, 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.records import Record

# Okabe and Ito's colours, which everyone can tell apart.
_COLOURS = {
    "bf16": "#0072B2",
    "int8": "#009E73",
    "int4": "#E69F00",
    "deterministic": "#56B4E9",
    "transformers": "#D55E00",
    "vllm": "#CC79A7",
}
_ROOF = "#333333"


def plot(path: Path, model: str, records: Sequence[Record]) -> None:
    """Write a PNG: for each number of threads the roof, and each side's cases under it.

    Raises OSError, ValueError for a file name that ends in no format that matplotlib knows, and
    for records without both phases: the roof has two sides.
    """
    counts = list(dict.fromkeys(r.params["threads"] for r in records if r.name == "rate"))
    figure = Figure(figsize=(8.5 * len(counts), 7), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(counts), squeeze=False)[0]
    for one, threads in zip(axes, counts, strict=True):
        own = [record for record in records if record.params.get("threads") == threads]
        roof = _draw_roof(one, own)
        _draw_sides(one, own)
        count = f"{threads} thread{'s' if threads != 1 else ''}"
        one.set_title(f"{count}: {roof}", loc="left", fontsize=11)
    figure.suptitle(f"{model}: prefill and decode under the hardware's roof", fontsize=15)
    handles = axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path)


def _best(records: Sequence[Record], name: str) -> float:
    found = [record.value for record in records if record.name == name]
    if not found:
        raise ValueError(f"a roofline needs prefill and decode: no {name} was measured")
    return max(found)


def _draw_roof(axes: Axes, records: Sequence[Record]) -> str:
    """Memory's slope up to where it meets the rate of matrix products. Returns both in words."""
    bandwidth, rate = _best(records, "bandwidth"), _best(records, "matrix rate")
    reach = [record.value for record in records if record.name == "intensity"]
    left, right = min(reach) / 2, max(*reach, rate / bandwidth) * 2
    axes.loglog([left, rate / bandwidth, right], [left * bandwidth, rate, rate], color=_ROOF, lw=2)
    axes.set_xlabel("FLOP per byte of weights and cache, each read once")
    axes.set_ylabel("GFLOP/s")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#e6e6e6")
    axes.set_axisbelow(True)
    return f"{bandwidth:.0f} GB/s from memory, {rate:.0f} GFLOP/s of bfloat16 products"


def _draw_sides(axes: Axes, records: Sequence[Record]) -> None:
    """A dot for each decode, a square for each prefill; a hollow dot is the longer context."""
    rates = [record for record in records if record.name == "rate"]
    places = [record for record in records if record.name == "intensity"]
    short = min((int(r.params["context"]) for r in rates if "context" in r.params), default=0)
    for side, colour in _COLOURS.items():
        own = [pair for pair in zip(places, rates, strict=True) if pair[1].params["side"] == side]
        axes.plot([], [], color=colour, marker="o", ls="", label=side if own else None)
        for place, rate in own:
            decode = "context" in rate.params
            filled = not decode or rate.params["context"] == short
            axes.plot(
                place.value,
                rate.value,
                marker="o" if decode else "s",
                ls="",
                color=colour,
                markerfacecolor=colour if filled else "white",
                markersize=7,
                alpha=0.8,
            )
            if side == "bf16" and filled:
                label = f"batch {rate.params['batch']}" if decode else f"{rate.params['tokens']}"
                where = (place.value, rate.value)
                axes.annotate(label, where, xytext=(7, -10), textcoords="offset points", fontsize=8)
