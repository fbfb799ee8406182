"""One answer, from its first request to its last token. Decides everything, does no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from baton.client.answer import Answer, Chunk
from baton.client.asked import Asked, Json
from baton.client.gateways import Tries
from baton.errors import AnswerFinished, BatonError, GatewayLost, InternalError, from_openai

#: What ends a stream.
_DONE = "[DONE]"
#: What a first chunk tells and a resumed request repeats.
_TOLD = ("seed", "prompt_digest", "workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A request to be sent, after a pause."""

    gateway: str
    wait: float  #: seconds
    url: str
    body: Mapping[str, Json]
    headers: Mapping[str, str]


class Course:
    """Says what to send, takes what comes, and knows how to go on when it breaks off.

        while (attempt := course.next()) is not None:
            wait, send; course.take(data) for each event, then course.ended();
            course.failed(error) for whatever goes wrong on the way

    An answer whose gateway died goes on at the next one behind its last token. Of several choices
    those that have not finished do so one after the other, as a request goes on with one.
    """

    def __init__(self, asked: Asked, model: str, tries: Tries, answer: Answer) -> None:
        """``answer`` is what is added to."""
        self._answer = answer
        self._asked = asked
        self._model = model
        self._tries = tries
        self._told: Mapping[str, Json] | None = None  #: by the first chunk
        self._done = False  #: the stream of this attempt has come to its end
        self._broken = False  #: the attempt before has not
        self._gateway = ""
        self._resuming: int | None = None  #: the choice that this attempt goes on with

    def next(self) -> Attempt | None:
        """The next request; None when all of the answer is here. Raises DeadlineExceeded."""
        unfinished = self._unfinished()
        if unfinished is None:
            self._answer.end()
            return None
        turn = self._tries.next()
        self._done, self._gateway = False, turn.url
        started = self._told is not None and bool(self._answer.choice(unfinished).tokens)
        deadlines = self._asked.phases_left(self._tries.elapsed + turn.wait, started=started)
        body = {**self._asked.body, "model": self._model}
        if deadlines:
            body["deadlines"] = deadlines
        self._resuming = None
        if self._told is not None:
            self._resuming = unfinished
            body.pop("n", None)
            body["baton_resume"] = {
                **self._told,
                "choice": unfinished,
                "generated_ids": list(self._answer.choice(unfinished).tokens),
            }
        return Attempt(
            gateway=turn.url,
            wait=turn.wait,
            url=turn.url + self._asked.path,
            body=body,
            headers=self._asked.headers,
        )

    def take(self, data: str) -> Iterator[Chunk]:
        """The chunks of an event. Raises the error that it is; DeadlineExceeded."""
        if data == _DONE:
            self._done = True
            return
        event = _event(data)
        if "error" in event:
            raise from_openai(event)
        if told := event.get("baton"):
            if self._told is None:
                self._told = {name: told[name] for name in _TOLD}
            elif self._broken:
                self._answer.resumed += 1
            self._broken = False
        for chunk in self._answer.add(event):
            if chunk.tokens:
                self._tries.got_on(self._gateway)
            yield chunk
        self._tries.left()

    def ended(self) -> None:
        """The stream is over. Raises GatewayLost if its answer is not."""
        if self._done and self._told is None:
            raise InternalError(f"{self._gateway} is no gateway of Baton's: it tells no seed")
        last = self._asked.n - 1 if self._resuming is None else self._resuming
        unfinished = self._unfinished()
        if not self._done or (unfinished is not None and unfinished <= last):
            raise GatewayLost(f"{self._gateway} ended the stream before the answer was whole")

    def failed(self, error: BatonError) -> Iterator[Chunk]:
        """Something ended the attempt: it goes on with the next one. Raises what cannot be mended.

        The choice that was to be gone on with may turn out to have ended: that is a chunk, too.
        """
        if isinstance(error, AnswerFinished) and self._resuming is not None:
            choice = self._answer.choice(self._resuming)
            # Its gateway saw tokens alone, and they have ended.
            called = choice.tool_calls and error.finish_reason == "stop"
            reason = "tool_calls" if called else error.finish_reason
            chunk = Chunk(choice=self._resuming, finish_reason=reason)
            choice.add(chunk)
            yield chunk
            return
        self._tries.failed(self._gateway, error)
        self._broken = True

    def _unfinished(self) -> int | None:
        """The first choice that has not ended."""
        if self._told is None:
            return 0
        choices = range(self._asked.n)
        return next((i for i in choices if self._answer.choice(i).finish_reason is None), None)


def _event(data: str) -> Mapping[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise InternalError(f"the gateway sent what is no event: {data[:200]!r}")
    return event
