"""The items of a response's output, and the events that tell how each grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, TypeAlias

from gateway.answers import TokenLogprob
from gateway.responses.bodies import (
    FunctionCallItem,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
)

#: Its type, and what it says.
Event: TypeAlias = tuple[str, dict[str, Any]]


class Item(ABC):
    """One of them, at its place in the output."""

    def __init__(self, item_id: str, index: int) -> None:
        self._id = item_id
        self._index = index
        self.status: ItemStatus = "in_progress"

    def begin(self) -> list[Event]:
        return [self._item("added"), *self._part("added")]

    def end(self, status: ItemStatus) -> list[Event]:
        """Nothing more comes."""
        self.status = status
        return [self._done(), *self._part("done"), self._item("done")]

    @abstractmethod
    def body(self) -> OutputItem:
        """As it stands."""

    @abstractmethod
    def _done(self) -> Event:
        """All that it says is said."""

    def _part(self, what: str) -> Iterable[Event]:
        """Of those that have parts: the only one was added, or is done."""
        return ()

    def _item(self, what: str) -> Event:
        told = {"output_index": self._index, "item": self.body()}
        return f"response.output_item.{what}", told

    def _at(self, **told: Any) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, **told}


class _Parted(Item):
    """It has one part, which is text."""

    def __init__(self, item_id: str, index: int) -> None:
        super().__init__(item_id, index)
        self.text = ""

    @property
    @abstractmethod
    def _content(self) -> OutputText | ReasoningText: ...

    def _part(self, what: str) -> Iterable[Event]:
        told = self._at(content_index=0, part=self._content)
        return [(f"response.content_part.{what}", told)]


class Words(_Parted):
    """What the model says to the user."""

    def __init__(self, item_id: str, index: int) -> None:
        super().__init__(item_id, index)
        self._told: list[TokenLogprob] = []

    def add(self, text: str, told: list[TokenLogprob]) -> Event:
        self.text += text
        self._told += told
        delta = self._at(content_index=0, delta=text, logprobs=told)
        return "response.output_text.delta", delta

    def body(self) -> OutputMessage:
        begun = self.status != "in_progress" or bool(self.text)
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": [self._content] if begun else [],
        }

    def _done(self) -> Event:
        told = self._at(content_index=0, text=self.text, logprobs=self._told)
        return "response.output_text.done", told

    @property
    def _content(self) -> OutputText:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": list(self._told),
        }


class Thoughts(_Parted):
    """What it thinks before."""

    def add(self, text: str) -> Event:
        self.text += text
        return "response.reasoning_text.delta", self._at(content_index=0, delta=text)

    def body(self) -> ReasoningItem:
        begun = self.status != "in_progress" or bool(self.text)
        return {
            "id": self._id,
            "type": "reasoning",
            "status": self.status,
            "summary": [],
            "content": [self._content] if begun else [],
        }

    def _done(self) -> Event:
        return "response.reasoning_text.done", self._at(content_index=0, text=self.text)

    @property
    def _content(self) -> ReasoningText:
        return {"type": "reasoning_text", "text": self.text}


class Call(Item):
    """What it wants called."""

    def __init__(self, call_id: str, name: str, index: int) -> None:
        super().__init__("fc_" + call_id.removeprefix("call_"), index)
        self._call_id = call_id
        self._name = name
        self._arguments = ""

    def add(self, arguments: str) -> Event:
        self._arguments += arguments
        return "response.function_call_arguments.delta", self._at(delta=arguments)

    def body(self) -> FunctionCallItem:
        return {
            "id": self._id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self._arguments,
        }

    def _done(self) -> Event:
        told = self._at(name=self._name, arguments=self._arguments)
        return "response.function_call_arguments.done", told
