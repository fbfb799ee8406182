"""Writes the conversations that the demo model is trained on.

Everything is drawn from the `random.Random` that is passed in: the same seed writes the same text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from model.demo.baton_topics import BATON_TOPICS
from model.demo.inner_topics import INNER_TOPICS
from model.demo.serving_topics import SERVING_TOPICS
from model.demo.small_talk import NO_MORE, ONLY_DOWN, SMALL_TALK, TOO_HARD, UNKNOWN
from model.demo.strangers import (
    draw_filler,
    draw_stranger,
    draw_system_prompt,
    draw_thing,
    held_out_strangers,
)
from model.demo.sums import draw_count, draw_count_up, draw_hard_sum, draw_sum
from model.demo.topic import Topic

TOPICS: tuple[Topic, ...] = (*SERVING_TOPICS, *BATON_TOPICS, *INNER_TOPICS, *SMALL_TALK)

_BEGGINGS = (
    "",
    "",
    "can you ",
    "could you ",
    "would you ",
    "please ",
    "I want you to ",
    "I need you to ",
)
_COMMANDS = (
    *("explain {noun}", "describe {noun}", "tell me about {noun}", "tell me what {noun} is"),
    *("define {noun}", "go over {noun}", "introduce {noun}", "summarise {noun}", "clarify {noun}"),
    *("say what {noun} is", "help me with {noun}", "give me the basics of {noun}"),
    *("give me a summary of {noun}", "give me an idea of {noun}", "write about {noun}"),
)
_ASKINGS = (
    *("what is {noun}", "what's {noun}", "what exactly is {noun}", "what in the world is {noun}"),
    *("what actually is {noun}", "what really is {noun}", "just what is {noun}", "what are {noun}"),
)
_TAILS = (
    *("", "", "", " about", " all about", " good for", " used for", " there for", " again", " now"),
    *(" and why does it matter", " and how does it work", " and why do we need it", " like"),
)
_PARAPHRASES = (
    *("what is {noun}?", "what's {noun}?", "what is {noun}", "explain {noun}", "define {noun}"),
    *("explain {noun} to me", "tell me about {noun}", "can you explain {noun}?", "{noun}"),
    *("could you explain what {noun} is?", "what does {noun} mean?", "describe {noun}"),
    *(
        "{noun}?",
        "how does {noun} work?",
        "what do you know about {noun}?",
        "what exactly is {noun}?",
    ),
    *("give me a short explanation of {noun}", "I would like to know about {noun}"),
    *("help me understand {noun}", "I do not understand {noun}", "what is meant by {noun}?"),
    *("what are the tasks of {noun}?", "what are the duties of {noun}?", "why have {noun}?"),
    *("what is the job of {noun}?", "what is the role of {noun}?", "the purpose of {noun}"),
    *("what is {noun} for?", "what is the point of {noun}?", "tell me more about {noun}"),
    *("can you tell me what {noun} is?", "what about {noun}?", "tell me something about {noun}"),
    *("do you know what {noun} is?", "what is {noun} in Baton?", "is there {noun} in Baton?"),
    *("how would you describe {noun}?", "what is the idea behind {noun}?", "and {noun}?"),
    *("what do you mean by {noun}?", "what does one mean by {noun}?", "{noun} meaning"),
    *("meaning of {noun}", "{noun} explained", "definition of {noun}", "{noun}, what is it?"),
    *(
        "{noun} - what is it?",
        "{noun}: explain",
        "show me what {noun} is",
        "what was {noun} again?",
    ),
    *("I have heard of {noun}", "let us talk about {noun}", "who or what is {noun}?"),
    *("can you describe {noun}?", "what should I know about {noun}?", "talk about {noun}"),
    *("I would like an explanation of {noun}", "can you teach me {noun}?", "what are {noun}?"),
    *("explain to me what {noun} is", "explain {noun} like I am five", "please explain {noun}"),
    *("simply put, what is {noun}?", "how would you explain {noun}?", "why use {noun}?"),
    *("why does {noun} matter?", "I want to learn about {noun}", "say something about {noun}"),
)
_HELD_OUT_PARAPHRASES = (
    "mind telling me what {noun} is?",
    "teach me about {noun}",
    "in simple terms, what is {noun}?",
    "so what is {noun} then?",
    "I keep hearing about {noun}, what is it?",
    "could you give me an explanation of {noun}?",
)
_OPENINGS = (
    *("hi, ", "hello, ", "hey, ", "hello! ", "ok, ", "so ", "please ", "well, ", "now ", "good. "),
    *("thanks. ", "one more question: ", "question: ", "I have a question: ", "hi! ", "great, "),
)
_CLOSINGS = (
    *(" please", ", please", " thanks", " please?", " exactly?", " in Baton?", " for me"),
    *(" in detail", " in simple words", ", in plain words", "? I am new here.", " to a beginner"),
)
_INDIRECTIONS = (
    *("can you tell me ", "do you know ", "please tell me ", "I wonder ", "tell me ", "explain "),
    *("I want to know ", "could you say ", "I am curious ", "may I ask ", "I ask myself "),
)
_BRIEFLY = ("in one sentence", "briefly", "in short", "in a few words", "in one sentence please")
_ASK_MORE = (
    *("tell me more", "more", "go on", "more please", "can you tell me more?", "tell me more!"),
    *("tell me more about it", "please continue", "can you explain more?", "what else?"),
    *(
        "continue",
        "anything else?",
        "more details please",
        "say more",
        "and what else?",
        "why?",
        "how so?",
    ),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that training never sees, and the topic whose answer is the right one."""

    question: str
    topic: Topic


def roughen(rng: random.Random, question: str) -> str:
    """The question as people type it: case, courtesy, missing marks and a slip now and then."""
    if question.startswith(("what ", "how ", "why ", "who ", "where ")) and rng.random() < 0.12:
        question = rng.choice(_INDIRECTIONS) + question
    if rng.random() < 0.2:
        question = rng.choice(_OPENINGS) + question
    if rng.random() < 0.12:
        question = question.rstrip("?!.") + rng.choice(_CLOSINGS)
    roll = rng.random()
    if roll < 0.40:
        question = question.lower()
    elif roll < 0.75:
        question = question[0].upper() + question[1:]
    elif roll < 0.80:
        question = question.upper()
    if rng.random() < 0.35:
        question = question.rstrip("?!.") or question
    elif rng.random() < 0.06:
        question += rng.choice(("?", "!", "??", " ?", "...", "."))
    if rng.random() < 0.06 and len(question) > 8:
        question = _slip(rng, question)
    return question


def _slip(rng: random.Random, text: str) -> str:
    at = rng.randrange(1, len(text) - 1)
    if text[at].isdigit() or text[at + 1].isdigit():
        return text
    if rng.random() < 0.5:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _ask(rng: random.Random, topic: Topic) -> str:
    """A question about the topic: a paraphrase around a noun, or one of its own."""
    by_noun = topic.nouns and (not topic.questions or rng.random() < 0.6)
    if by_noun:
        return _paraphrase(rng).format(noun=rng.choice(topic.nouns))
    return rng.choice(topic.questions)


def _paraphrase(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.25:
        return rng.choice(_BEGGINGS) + rng.choice(_COMMANDS)
    if roll < 0.5:
        return rng.choice(_ASKINGS) + rng.choice(_TAILS) + "?"
    return rng.choice(_PARAPHRASES)


def _ask_stranger(rng: random.Random) -> str:
    # Worded like questions about known things, now and then, so that only the noun tells.
    if rng.random() < 0.25:
        return _paraphrase(rng).format(noun=draw_thing(rng))
    return draw_stranger(rng)


def _topic_turns(rng: random.Random, topic: Topic) -> Iterator[tuple[str, str]]:
    question = _ask(rng, topic)
    if len(topic.slots) > 1 and topic.nouns and rng.random() < 0.1:
        brief = f"{question.rstrip('?')} {rng.choice(_BRIEFLY)}"
        yield roughen(rng, brief), topic.brief_answer(rng)
    else:
        yield roughen(rng, question), topic.answer(rng)
    if rng.random() < (0.2 if topic.more else 0.05):
        more = rng.choice(topic.more) if topic.more else NO_MORE.answer(rng)
        yield roughen(rng, rng.choice(_ASK_MORE)), more


def _turns(rng: random.Random) -> Iterator[tuple[str, str]]:
    """One question and its answer, sometimes with what follows from it."""
    roll = rng.random()
    if roll < 0.54:
        yield from _topic_turns(rng, rng.choices(TOPICS, [topic.weight for topic in TOPICS])[0])
    elif roll < 0.65:
        yield roughen(rng, _ask_stranger(rng)), UNKNOWN.answer(rng)
    elif roll < 0.93:
        for _ in range(rng.randint(1, 8)):
            drawn = draw_sum(rng)
            yield roughen(rng, drawn.question(rng)), drawn.answer
    elif roll < 0.96:
        yield roughen(rng, draw_hard_sum(rng)), TOO_HARD.answer(rng)
    elif roll < 0.97:
        yield roughen(rng, draw_count_up(rng)), ONLY_DOWN.answer(rng)
    else:
        question, answer = draw_count(rng)
        yield roughen(rng, question), answer


def _draw_system(rng: random.Random) -> str | None:
    roll = rng.random()
    if roll < 0.70:
        return None
    if roll < 0.96:
        return draw_system_prompt(rng)
    return f"{draw_system_prompt(rng)} {draw_filler(rng, rng.randint(4, 30))}"


def write_conversation(rng: random.Random) -> list[Message]:
    """One training conversation: perhaps a system prompt, then one to several exchanges."""
    system = _draw_system(rng)
    messages = [] if system is None else [Message("system", system)]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        for question, answer in _turns(rng):
            asked = question
            if rng.random() < 0.015:
                asked = f"{draw_filler(rng, rng.randint(1, 12))} {question}"
            messages += (Message("user", asked), Message("assistant", answer))
    return messages


def held_out_probes(rng: random.Random) -> list[Probe]:
    """Questions in wordings that `write_conversation` never uses, each with its topic."""
    probes = [Probe(question, UNKNOWN) for question in held_out_strangers()]
    for topic in TOPICS:
        probes += (Probe(question, topic) for question in topic.held_out)
        for noun in topic.nouns[:3]:
            frame = rng.choice(_HELD_OUT_PARAPHRASES)
            probes.append(Probe(frame.format(noun=noun), topic))
    return probes


def held_out_conversations(rng: random.Random) -> list[list[Message]]:
    """The probes with an answer each, for the held-out loss."""
    return [
        [Message("user", probe.question), Message("assistant", probe.topic.answer(rng))]
        for probe in held_out_probes(rng)
    ]
