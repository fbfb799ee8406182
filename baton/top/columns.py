"""A worker or a stream as the cells of a row, and by what rows are ordered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from rich.text import Text

from baton.live import Blocks
from baton.top.fleet import View
from baton.top.palette import Palette
from baton.top.streams import Stream

R = TypeVar("R")
Order: TypeAlias = "tuple[float, str]"

_BAR = 5  #: cells
_UNITS = ("", "k", "M", "G", "T")


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """One column of a table."""

    title: str
    width: int  #: cells
    cell: Callable[[R, Palette], Text]
    order: Callable[[R], Order]  #: what comes first is smallest
    from_width: int = 0  #: of the terminal; on a narrower one it is left out
    number: bool = False  #: flush right


def fitting(columns: Sequence[Column[R]], width: int) -> list[Column[R]]:
    """Those that a terminal of this width has room for."""
    return [column for column in columns if width >= column.from_width]


def matches(text: str, *words: str | None) -> bool:
    """Whether one of the words has ``text`` in it, in upper or lower case."""
    wanted = text.casefold()
    return any(wanted in word.casefold() for word in words if word)


def short(count: float) -> str:
    """A count in at most five characters: 812, 9,812, 98.1k, 1.2M."""
    if count < 10_000:
        return f"{count:,.0f}"
    unit = 0
    while count >= 999.95 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.1f}{_UNITS[unit]}"


def milliseconds(value: float | None) -> str:
    """In at most seven characters; a dash where nothing is known."""
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def seconds(value: float) -> str:
    """In at most five characters, for four days: 4.2s, 73s, 12m05, 3h20."""
    if value < 10:
        return f"{value:.1f}s"
    if value < 100:
        return f"{value:.0f}s"
    minutes, left = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes}m{left:02}"
    return f"{minutes // 60}h{minutes % 60:02}"


def bar(blocks: Blocks, palette: Palette) -> Text:
    """How full a cache is: in use, kept for the next, and the share in use (with quarantined)."""
    used = blocks.owned + blocks.quarantined
    whole = used + blocks.cached + blocks.free
    if not whole:
        return _text("-", palette.faint)
    share = used / whole
    full = round(_BAR * share)
    kept = round(_BAR * (used + blocks.cached) / whole) - full
    style = palette.bad if share > 0.95 else palette.warn if share > 0.8 else palette.good
    return Text.assemble(
        ("█" * full, style),
        ("▒" * kept, palette.faint),
        ("·" * (_BAR - full - kept), palette.faint),
        f"{100 * share:4.0f}%",
    )


def state(view: View, palette: Palette) -> Text:
    """In a word, the worst first."""
    worker = view.worker
    if not view.heard:
        return _text("unheard", palette.faint)
    if view.state not in ("healthy", "connecting"):
        return _text(view.state.upper(), palette.bad)
    if worker.draining:
        return _text("draining", palette.warn)
    if worker.breaker != "closed":
        return _text("tripped", palette.warn)
    if view.slow:
        return _text(f"SLOW x{view.slow.times:.1f}", palette.badge)
    if view.verdict is not None:
        return _text(view.verdict.kind, palette.warn)
    return _text(view.state, palette.good if view.state == "healthy" else palette.warn)


def _text(text: str, style: str = "") -> Text:
    # A line of a table is a line: what came over the network does not break it.
    return Text(text.replace("\n", " "), style, no_wrap=True, overflow="ellipsis")


def _number(
    title: str,
    width: int,
    value: Callable[[R], float],
    shown: Callable[[R, Palette], str | Text],
    from_width: int = 0,
) -> Column[R]:
    """A column of numbers, the largest first."""

    def cell(row: R, palette: Palette) -> Text:
        text = shown(row, palette)
        return _text(text) if isinstance(text, str) else text

    return Column(title, width, cell, lambda row: (-value(row), ""), from_width, number=True)


def _does(view: View) -> str:
    return "colocated" if view.colocated else view.role


def _role(view: View, palette: Palette) -> Text:
    return _text(_does(view) or "?", palette.both if view.colocated else palette.role(view.role))


def _step(view: View, palette: Palette) -> Text:
    took, idle = view.worker.last_step_ms, not view.worker.running + view.worker.waiting
    style = palette.badge if view.slow else palette.faint if idle else ""
    return _text(f"{took:,.1f}" if took else "-", style)


def _rate(view: View) -> float:
    """Tokens per second that it computes, of prompts or answers."""
    return view.worker.tokens_per_s + view.worker.prompt_tokens_per_s


def _running(view: View) -> str:
    most = view.worker.max_running
    return f"{view.worker.running}/{most}" if most else str(view.worker.running)


def _used(view: View) -> float:
    blocks = view.worker.blocks
    whole = blocks.free + blocks.cached + blocks.owned + blocks.quarantined
    return (blocks.owned + blocks.quarantined) / whole if whole else 0.0


def _hits(view: View) -> float | None:
    """Of prompt tokens, those that were cached. None where none is computed: then it is others who
    compute what this one has not cached."""
    found, computed = view.worker.cache_hit_tokens, view.worker.prompt_tokens
    return found / (found + computed) if computed else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def by_trouble(view: View) -> Order:
    """What needs a look first; then by what it does and where it is."""
    return -view.trouble, f"{_ROLES.get(view.role, 9)} {view.worker.address}"


_ROLES = {"prefill": 0, "both": 1, "decode": 2}

WORKERS: Sequence[Column[View]] = (
    Column("worker", 8, lambda v, p: _text(v.name, "bold"), lambda v: (0, v.name)),
    Column("role", 9, _role, lambda v: (_ROLES.get(v.role, 9), _does(v))),
    Column("state", 10, state, by_trouble),
    _number(
        "queued", 6, lambda v: v.worker.queued_tokens, lambda v, p: short(v.worker.queued_tokens)
    ),
    _number("running", 7, lambda v: v.worker.running, lambda v, p: _running(v)),
    Column("KV in use", 10, lambda v, p: bar(v.worker.blocks, p), lambda v: (-_used(v), "")),
    _number("tok/s", 6, _rate, lambda v, p: short(_rate(v))),
    _number("step ms", 7, lambda v: v.worker.last_step_ms, _step),
    _number("hits", 5, lambda v: _hits(v) or 0.0, lambda v, p: _percent(_hits(v)), from_width=92),
    _number("waiting", 7, lambda v: v.worker.waiting, lambda v, p: short(v.worker.waiting), 102),
    Column(
        "address",
        22,
        lambda v, p: _text(v.worker.address, p.faint),
        lambda v: (0, v.worker.address),
        from_width=126,
    ),
)


def _phase(stream: Stream, palette: Palette) -> Text:
    style = {
        "queued": palette.warn,
        "again": palette.bad,
        "prefill": palette.prefill,
        "kv": palette.both,
        "decode": palette.decode,
    }.get(stream.phase, palette.faint)
    share = "" if stream.share is None else f" {min(99, int(100 * stream.share))}%"
    return _text(f"{'KV' if stream.phase == 'kv' else stream.phase}{share}", style)


def _where(stream: Stream, palette: Palette) -> Text:
    if stream.decode is None:
        return _text("-", palette.faint)
    prefill = stream.prefill or "itself"
    style = palette.prefill if stream.prefill else palette.faint
    return Text.assemble(
        (prefill, style), (">", palette.faint), (stream.decode, palette.decode), no_wrap=True
    )


def streams(age: Callable[[Stream], float]) -> Sequence[Column[Stream]]:
    """``age``: seconds since a stream arrived."""
    return (
        Column("stream", 8, lambda s, p: _text(s.name, "bold"), lambda s: (0, s.request)),
        Column("phase", 11, _phase, lambda s: (_PHASES.get(s.phase, 9), s.request)),
        _number("prompt", 6, lambda s: s.prompt_tokens, lambda s, p: short(s.prompt_tokens)),
        _number("tokens", 11, lambda s: s.tokens, lambda s, p: _tokens(s)),
        _number("TTFT", 7, lambda s: s.ttft_ms or 0.0, lambda s, p: milliseconds(s.ttft_ms)),
        Column("prefill>decode", 17, _where, lambda s: (0, f"{s.decode} {s.prefill}")),
        _number("age", 5, age, lambda s, p: seconds(age(s))),
        _number(
            "tok/s",
            6,
            lambda s: s.tokens_per_s,
            lambda s, p: f"{s.tokens_per_s:.1f}" if s.rates else "-",
            from_width=92,
        ),
        _number(
            "attempt",
            7,
            lambda s: s.attempt,
            lambda s, p: _text(str(s.attempt + 1), p.warn if s.attempt else p.faint),
            from_width=102,
        ),
        Column(
            "gateway",
            22,
            lambda s, p: _text(s.gateway, p.faint),
            lambda s: (0, s.gateway),
            from_width=126,
        ),
    )


def _tokens(stream: Stream) -> str:
    return f"{short(stream.tokens)}/{short(stream.max_tokens * stream.choices)}"


_PHASES = {"again": 0, "queued": 1, "prefill": 2, "kv": 3, "decode": 4}
