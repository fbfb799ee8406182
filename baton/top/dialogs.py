"""What comes up over the view: a question, a choice, a prompt, help."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from baton.top.orders import OrderFailed, Orders
from baton.top.palette import Palette

_FRAME = """
    align: center middle;
    & > Vertical {
        width: 72; max-width: 95%; height: auto; max-height: 90%;
        padding: 0 2; border: round $accent; background: $surface;
    }
"""


class Confirm(ModalScreen[bool]):
    """Whether something is to be done; unless one says yes, it is not."""

    DEFAULT_CSS = f"""
    Confirm {{ {_FRAME} }}
    Confirm Horizontal {{ height: auto; align-horizontal: right; }}
    Confirm Button {{ margin: 1 0 0 2; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
    ]

    def __init__(self, question: str, consequence: str) -> None:
        super().__init__()
        self._question = question
        self._consequence = consequence

    def compose(self) -> ComposeResult:
        with Vertical() as frame:
            frame.border_title = "Sure?"
            yield Static(Text(self._question, "bold"), id="question")
            yield Static(Text(self._consequence))
            with Horizontal():
                yield Button("No (n)", id="no", compact=True)
                yield Button("Yes (y)", id="yes", variant="warning", compact=True)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class ChooseRole(ModalScreen[str | None]):
    """A role for a worker; None: as it is."""

    DEFAULT_CSS = f"""
    ChooseRole {{ {_FRAME} }}
    ChooseRole OptionList {{ border: none; height: auto; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Leave it")]

    def __init__(self, name: str, roles: Sequence[tuple[str, str]], now: str) -> None:
        """``roles``: names of roles, and why one cannot be had (empty where it can)."""
        super().__init__()
        self._called = name
        self._roles = roles
        self._now = now

    def compose(self) -> ComposeResult:
        with Vertical() as frame:
            frame.border_title = f"What is {self._called} to do?"
            yield OptionList(*[self._option(role, why) for role, why in self._roles])

    def _option(self, role: str, why: str) -> Option:
        now = why or ("as now" if role == self._now else "")
        text = Text.assemble((role, "bold"), f"  {now}")
        return Option(text, id=role, disabled=bool(now))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)


class Ask(ModalScreen[None]):
    """A prompt, and its answer as it comes."""

    DEFAULT_CSS = f"""
    Ask {{ {_FRAME} }}
    Ask VerticalScroll {{ height: auto; max-height: 14; margin: 1 0; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def __init__(self, orders: Orders, palette: Palette) -> None:
        super().__init__()
        self._orders = orders
        self._palette = palette

    def compose(self) -> ComposeResult:
        with Vertical() as frame:
            frame.border_title = "Ask the model"
            yield Input(placeholder="What is prefill?  (Enter sends it, Escape closes)")
            with VerticalScroll(can_focus=False):
                yield Static(id="answer", markup=False)
            yield Static(id="measured", markup=False)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self._follow(event.value)

    @work(exclusive=True)
    async def _follow(self, prompt: str) -> None:
        """Show an answer; another prompt, or closing the dialog, cancels it."""
        answer, measured = self.query_one("#answer", Static), self.query_one("#measured", Static)
        scroll = self.query_one(VerticalScroll)
        began, first, said = time.monotonic(), 0.0, ""
        answer.update("")
        measured.update(Text("asked ...", self._palette.faint))
        try:
            async for piece in self._orders.ask(prompt):
                first = first or (time.monotonic() - began if piece else 0.0)
                said += piece
                # A model does not get to command the terminal.
                answer.update(Text(said.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")))
                scroll.scroll_end(animate=False)
        except OrderFailed as error:
            measured.update(Text(str(error), self._palette.bad))
        else:
            took = time.monotonic() - began
            text = f"first text after {1000 * first:.0f} ms, all of it after {took:.1f} s"
            measured.update(Text(text, self._palette.good))


class Help(ModalScreen[None]):
    """What is seen, and which key does what."""

    DEFAULT_CSS = f"""
    Help {{ {_FRAME} }}
    Help > Vertical {{ width: 78; max-height: 100%; }}
    Help VerticalScroll {{ height: auto; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss(None)", "Close")
    ]

    def __init__(self, palette: Palette) -> None:
        super().__init__()
        self._palette = palette

    def compose(self) -> ComposeResult:
        with Vertical() as frame:
            frame.border_title = "baton top"
            with VerticalScroll():
                yield Static(help_text(self._palette))
        yield Footer(compact=True, show_command_palette=False)


def help_text(palette: Palette) -> Text:
    """What the marks and keys mean."""
    keys = (
        ("Tab, arrows", "from table to table, from row to row"),
        ("d", "drain the worker at the cursor: it hands its work back"),
        ("r", "have it prefill, decode or do both"),
        ("p", "ask the model something, and see the answer come"),
        ("/", "show only what has these letters in it; Escape: all"),
        ("s, S", "order the table by its next column; the other way round"),
        ("z", "the table alone, and back"),
        ("space", "hold the picture; the feed is still followed"),
        ("g", "an old tube: green, amber, none"),
    )
    text = Text()
    for key, meaning in keys:
        text.append(f"{key:>11}  ", "bold")
        text.append(f"{meaning}\n")
    text.append("\nWorkers that need a look come first. ")
    text.append("SLOW x2.9", palette.badge)
    text.append(
        ": its steps of the last 10 s took that many times as long as those of the others of its "
        "role, and twice as long as the long ones there. Steps grow with what is in them: look "
        "at running and queued as well.\n"
    )
    for mark, style, meaning in (
        ("KV in use: ", "", ""),
        ("█", palette.good, " by sequences, "),
        ("▒", palette.faint, " kept for the next, "),
        ("·", palette.faint, " free.\n"),
    ):
        text.append(mark, style)
        text.append(meaning)
    text.append(
        "tok/s: of prompts and answers. hits: of all prompt tokens, those found cached.\n"
        "TTFT, ITL: of the last minute, all gateways together; ITL over a quarter of a second at "
        "a time, so shorter pauses are averaged."
    )
    return text
