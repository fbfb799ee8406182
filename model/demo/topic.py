"""What a topic is: the ways to ask about it and the sentences its answers are made of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

Slot = tuple[str, ...]
"""Sentences that can stand in for one another at one place of an answer."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing the model can talk about.

    An answer takes one sentence from each slot, in order, so that a topic with slots of 3, 3 and 2
    sentences has 18 full answers. All of them are true; none depends on which other was taken.
    """

    name: str
    slots: tuple[Slot, ...]
    nouns: tuple[str, ...] = ()
    """Noun phrases that fit "what is {noun}?" and its paraphrases."""
    questions: tuple[str, ...] = ()
    """Whole questions, for what the shared paraphrases do not cover."""
    held_out: tuple[str, ...] = ()
    """Whole questions that training never sees: they measure how far paraphrase carries."""
    more: Slot = ()
    """What "tell me more" adds, once the topic has been answered."""
    weight: float = 1.0
    """How often the topic is drawn, relative to the others."""

    def answer(self, rng: random.Random) -> str:
        """A full answer; now and then without its last sentence, so that lengths vary."""
        count = len(self.slots)
        if count == 3 and rng.random() < 0.2:
            count -= 1
        return " ".join(rng.choice(slot) for slot in self.slots[:count])

    def brief_answer(self, rng: random.Random) -> str:
        """The opening sentence alone."""
        return rng.choice(self.slots[0])

    def is_answered_by(self, text: str) -> bool:
        """Whether `text` is, word for word, an answer that this topic's slots can make."""
        return _spells(text.strip(), self.slots, first=True)


def comparisons(first: str, second: str) -> tuple[str, ...]:
    """Questions about the difference between two things, in both orders."""
    frames = (
        *("what is the difference between {a} and {b}?", "{a} vs {b}", "{a} versus {b}"),
        *("how do {a} and {b} differ?", "compare {a} and {b}", "how is {a} different from {b}?"),
        *("explain {a} and {b}", "what are {a} and {b}?", "what distinguishes {a} from {b}?"),
        *(
            "{a} or {b}?",
            "is {a} the same as {b}?",
            "difference between {a} and {b}",
            "{a} and {b}",
        ),
    )
    pairs = ((first, second), (second, first))
    return tuple(frame.format(a=a, b=b) for frame in frames for a, b in pairs)


def losses(*subjects: str) -> tuple[str, ...]:
    """Questions about what happens when one of the subjects, such as "a worker", is lost."""
    fates = (
        *("dies", "crashes", "fails", "is killed", "goes away", "is lost", "stops", "disappears"),
        *("breaks", "hangs", "shuts down", "goes offline", "gets killed", "is gone"),
    )
    frames = (
        *("what happens when {it} {fate}?", "what happens if {it} {fate}?", "what if {it} {fate}?"),
        *("what does Baton do when {it} {fate}?", "and if {it} {fate}?", "{it} {fate}"),
        *(
            "what happens to my stream when {it} {fate}?",
            "what happens to my request if {it} {fate}?",
        ),
    )
    by_fate = (
        frame.format(it=it, fate=fate) for frame in frames for it in subjects for fate in fates
    )
    by_hand = (
        frame.format(it=it)
        for it in subjects
        for frame in (
            *("what happens when I kill {it}?", "can Baton lose {it}?", "what if I lose {it}?"),
            *("what happens if I stop {it}?", "what if I kill {it} in the middle of an answer?"),
        )
    )
    return (*by_fate, *by_hand)


def _spells(text: str, slots: Sequence[Slot], first: bool) -> bool:
    if not text:
        return not first
    return any(
        _spells(text[len(sentence) :].lstrip(), slots[1:], first=False)
        for sentence in (slots[0] if slots else ())
        if text.startswith(sentence)
    )
