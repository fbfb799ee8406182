"""Which colour means what. Colour never says anything alone: there is always a word."""

from __future__ import annotations

from dataclasses import dataclass

from textual.theme import Theme


@dataclass(frozen=True, slots=True)
class Palette:
    """Styles as rich has them."""

    theme: Theme  #: of everything that is not text of ours
    prefill: str
    decode: str
    both: str
    good: str
    warn: str
    bad: str
    badge: str  #: what must be seen first
    faint: str
    beam: str = ""  #: background of the line that the beam is at, in a tube; empty: no tube

    def role(self, name: str) -> str:
        """Of "prefill", "decode" or "both"; faint for a worker that has not said."""
        return {"prefill": self.prefill, "decode": self.decode, "both": self.both}.get(
            name, self.faint
        )


PLAIN = Palette(
    theme=Theme(
        name="baton",
        primary="#5aa9e6",
        secondary="#7f8ea3",
        accent="#ffb454",
        foreground="#d7dce2",
        background="#0f1419",
        surface="#151b22",
        panel="#1c242d",
        success="#7fd962",
        warning="#ffb454",
        error="#ff6b6b",
    ),
    prefill="#56c8d8",
    decode="#7fd962",
    both="#e6c14c",
    good="#7fd962",
    warn="#ffb454",
    bad="bold #ff6b6b",
    badge="bold #14191f on #ffb454",
    faint="#8a94a3",
)


def _phosphor(name: str, glow: str, bright: str, dim: str, dark: str, beam: str) -> Palette:
    return Palette(
        theme=Theme(
            name=name,
            primary=glow,
            secondary=dim,
            accent=bright,
            foreground=glow,
            background=dark,
            surface=dark,
            panel=dark,
            success=glow,
            warning=bright,
            error=bright,
        ),
        prefill=f"bold {bright}",
        decode=glow,
        both=f"italic {bright}",
        good=glow,
        warn=f"bold {bright}",
        bad=f"bold underline {bright}",
        badge=f"bold {dark} on {bright}",
        faint=dim,
        beam=beam,
    )


#: The tubes of old, by their phosphor.
TUBES = {
    "green": _phosphor("green tube", "#33e05f", "#c2ffcf", "#23a045", "#03140a", "#0b3a1a"),
    "amber": _phosphor("amber tube", "#ffb000", "#ffe3a3", "#b37b00", "#170f00", "#452f00"),
}
