"""Finds tags in text that arrives in pieces, and trims it. Where it is cut makes no difference."""

from __future__ import annotations

from gateway.stopper import overlap


class TagFinder:
    """Parts text at a tag. Holds back only what could still become the tag."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """What is certain to lie before the tag, and what lies behind it; None until it is found.
        Then it looks for the next."""
        text = self._held + text
        before, found, behind = text.partition(self._tag)
        if found:
            self._held = ""
            return before, behind
        cut = len(text) - overlap(text, self._tag)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """What was held back, at the end: it did not become the tag."""
        held, self._held = self._held, ""
        return held


class Trimmer:
    """Holds back white space until something follows it."""

    def __init__(self, *, leading: bool) -> None:
        """``leading``: white space at the beginning is dropped."""
        self._leading = leading
        self._held = ""

    def push(self, text: str) -> str:
        """The text, less the white space at its end."""
        text = self._held + text
        if self._leading:
            text = text.lstrip()
        kept = text.rstrip()
        self._leading = self._leading and not kept
        self._held = text[len(kept) :]
        return kept

    def drop(self) -> None:
        """Forget what was held back, and drop the white space that comes next."""
        self._leading, self._held = True, ""

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held
