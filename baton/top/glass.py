"""The look of an old tube: a beam that runs down, and noise after a shock.

It takes lines as they are about to be shown. It never touches a character that says something:
noise comes only where nothing is written, and not beside what is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

#: How much of what is empty becomes noise at a shock, and how much of that is left a step later.
_SHOCK, _DECAY, _QUIET = 0.3, 0.72, 0.01
_GLYPHS = "░▒▓·:¦=~+"
#: Blanks that have three more on each side.
_EMPTY = re.compile(r"(?<=   ) {3,}(?=   )")
#: Backgrounds that are darker than this are the tube's own; the rest is a cursor or a badge.
_DARK = 90


class Glass:
    """The state of the tube; ``look`` gives a picture its looks."""

    def __init__(self, beam: str, faint: str, rng: random.Random) -> None:
        """``beam``: background of the line that it is at; ``faint``: colour of noise."""
        self._lit = Color.parse(beam)
        self._faint = Style.parse(faint)
        self._rng = rng
        self.row = 0  #: of the screen, where the beam is
        self.noise = 0.0  #: share of what is empty

    def shock(self) -> None:
        """Something bad has happened."""
        self.noise = _SHOCK

    def step(self, height: int) -> None:
        """The beam goes on, and noise fades. ``height``: of the screen, in rows."""
        self.row = (self.row + 1) % max(1, height)
        self.noise = self.noise * _DECAY if self.noise > _QUIET else 0.0

    def look(self, strips: list[Strip], top: int) -> list[Strip]:
        """Lines from row ``top`` of the screen on, as the tube shows them."""
        if self.noise:
            strips = [self._noisy(strip) for strip in strips]
        at = self.row - top
        if 0 <= at < len(strips):
            strips = [*strips[:at], self._beam(strips[at]), *strips[at + 1 :]]
        return strips

    def _noisy(self, strip: Strip) -> Strip:
        segments: list[Segment] = []
        for segment in strip:
            segments += [segment] if segment.control else self._scattered(segment)
        return Strip(segments, strip.cell_length)

    def _scattered(self, segment: Segment) -> Iterator[Segment]:
        """The segment in pieces, between them noise."""
        text, style, _ = segment
        behind = 0
        for blank in _EMPTY.finditer(text):
            yield Segment(text[behind : blank.start()], style)
            noise = "".join(self._glyph() for _ in blank[0])
            yield Segment(noise, style + self._faint if style else self._faint)
            behind = blank.end()
        yield Segment(text[behind:], style)

    def _glyph(self) -> str:
        return self._rng.choice(_GLYPHS) if self._rng.random() < self.noise else " "

    def _beam(self, strip: Strip) -> Strip:
        lit = Style(bgcolor=self._lit)
        return Strip(
            [
                Segment(text, style + lit if style and _is_dark(style) else style, control)
                for text, style, control in strip
            ],
            strip.cell_length,
        )


def _is_dark(style: Style) -> bool:
    if style.reverse:
        return False
    return style.bgcolor is None or max(style.bgcolor.get_truecolor()) < _DARK
