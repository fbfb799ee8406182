"""The planner's answer as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.plan.search import Tried


def draw(tried: Sequence[Tried], chosen: Tried, title: str, path: Path) -> None:
    """Goodput per worker of every split that was tried, and how busy its sides were then."""
    from matplotlib.figure import Figure  # here: only who draws needs it

    splits = sorted((t for t in tried if t.fleet.prefill), key=lambda t: t.fleet.prefill)
    places = [t.fleet.prefill for t in splits]
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    upper.plot(places, [t.rate for t in splits], marker="o", label="prefill and decode apart")
    for alone in (t for t in tried if t.fleet.colocated):
        upper.axhline(alone.rate, color="tab:orange", linestyle="--", label="colocated")
    if chosen.fleet.prefill:
        upper.plot(
            [chosen.fleet.prefill], [chosen.rate], marker="*", markersize=16, color="tab:green",
            linestyle="none", label=f"chosen: {chosen.fleet}",
        )  # fmt: skip
    upper.set_ylim(bottom=0)
    upper.set_ylabel("goodput, requests/s")
    upper.legend(frameon=False)
    for role in ("prefill", "decode"):
        lower.plot(places, [t.outcome.busy.get(role, 0.0) for t in splits], marker=".", label=role)
    lower.set_ylim(0, 1.05)
    lower.set_ylabel("busy")
    lower.set_xlabel(f"prefill workers of {chosen.fleet.workers}")
    lower.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
