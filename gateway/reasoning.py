"""What a model thinks before it answers: text up to </think>, told apart from the answer."""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal

from gateway.tags import TagFinder, Trimmer

OPEN, CLOSE = "<think>", "</think>"

ReasoningFormat = Literal["qwen3", "deepseek"]


class Thinking(Enum):
    """How an answer begins."""

    NO = auto()  #: the answer alone
    MAYBE = auto()  #: thoughts if it begins with <think>
    ASSUMED = auto()  #: thoughts, with or without <think>
    BEGUN = auto()  #: thoughts; the prompt ends with <think>


def detect(template: str) -> ReasoningFormat | None:
    """How a model reasons, by its chat template."""
    if OPEN in template:
        return "qwen3"
    return "deepseek" if CLOSE in template else None


def thinking(reasons: ReasoningFormat | None, prompt: str) -> Thinking:
    """How the answer to a prompt begins, by what the template put at its end."""
    end = prompt.rstrip()
    if reasons is None or end.endswith(CLOSE):
        return Thinking.NO
    if end.endswith(OPEN):
        return Thinking.BEGUN
    return Thinking.MAYBE if reasons == "qwen3" else Thinking.ASSUMED


class ReasoningReader:
    """Parts thoughts from the answer. White space around thoughts is dropped."""

    def __init__(self, thinking: Thinking) -> None:
        self._opening = thinking in (Thinking.MAYBE, Thinking.ASSUMED)
        self._thinks = thinking in (Thinking.ASSUMED, Thinking.BEGUN)
        self._held = ""  # may become the opening tag
        self._finder = TagFinder(CLOSE)
        self._thoughts = Trimmer(leading=True)
        self._after = False  # white space behind the thoughts is dropped

    def push(self, text: str) -> tuple[str, str]:
        """Thoughts, and text of the answer."""
        if self._opening:
            text = self._held + text
            bare = text.lstrip()
            if OPEN.startswith(bare) and bare != OPEN:
                self._held = text
                return "", ""
            self._opening, self._held = False, ""
            if bare.startswith(OPEN):
                self._thinks, text = True, bare.removeprefix(OPEN)
        if not self._thinks:
            return "", self._answer(text)
        before, behind = self._finder.push(text)
        thoughts = self._thoughts.push(before)
        if behind is None:
            return thoughts, ""
        self._thinks, self._after = False, True
        return thoughts, self._answer(behind)

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end."""
        if self._thinks:
            return self._thoughts.push(self._held + self._finder.flush()), ""
        return "", self._held

    def _answer(self, text: str) -> str:
        if self._after:
            text = text.lstrip()
            self._after = not text
        return text
