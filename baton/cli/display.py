"""What ``baton up`` shows: progress of the start, notes of its own, every process's log."""

from __future__ import annotations

import time
from enum import Enum

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text


class Phase(Enum):
    """How far a process has come."""

    STARTING = "starting"
    LOADING = "loading weights"
    READY = "ready"


#: First letter of a process's name -> its colour; prefill and decode are told apart at a glance.
_COLOURS = {"p": "cyan", "d": "green", "c": "yellow", "g": "magenta"}
_OWN = "baton"


class Display:
    """Writes to one console: with a live status on a terminal, in plain lines otherwise."""

    def __init__(self, console: Console, names: list[str]) -> None:
        self._console = console
        self._width = max(len(name) for name in [*names, _OWN])
        self._phases = dict.fromkeys(names, Phase.STARTING)
        self._spinners = {name: Spinner("dots") for name in names}
        self._began = time.monotonic()
        self._live = Live(
            console=console, refresh_per_second=8, transient=True, get_renderable=self._status
        )

    @property
    def terminal(self) -> bool:
        return self._console.is_terminal

    def start(self) -> None:
        """Show the live status, where there is a terminal, until all is ready or ``stop``."""
        if self.terminal:
            self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def phase(self, name: str, phase: Phase) -> None:
        """Process ``name`` has come to ``phase``; said once."""
        if self._phases[name] is phase:
            return
        self._phases[name] = phase
        if phase is Phase.LOADING and not self._live.is_started:
            self.note(f"{name} {phase.value}")
        if all(known is Phase.READY for known in self._phases.values()):
            self.stop()

    def log(self, name: str, line: str) -> None:
        """One line that process ``name`` wrote; its own colours are kept."""
        prefix = (f"{name:>{self._width}} | ", _COLOURS.get(name[0], ""))
        self._print(Text.assemble(prefix, Text.from_ansi(line)))

    def note(self, text: str, style: str = "bold") -> None:
        """One line of baton's own."""
        self._print(Text.assemble(f"{_OWN:>{self._width}} | ", (text, style)))

    def plain(self, text: str) -> None:
        """A line to be copied: without prefix, never wrapped."""
        self._print(Text(text))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    def _status(self) -> Group:
        elapsed = time.monotonic() - self._began
        rows: list[Text | Spinner] = []
        for name, phase in self._phases.items():
            text = Text(f"{name:>{self._width}}  {phase.value}", style=_COLOURS.get(name[0], ""))
            if phase is Phase.READY:
                rows.append(Text.assemble("✓ ", text))
            else:
                text.append(f"  {elapsed:.0f} s", style="dim")
                self._spinners[name].update(text=text)
                rows.append(self._spinners[name])
        return Group(*rows)
