"""The input items of a response as the messages of a chat. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.messages import parsed
from gateway.responses.input import (
    InputCall,
    InputItem,
    InputMessage,
    InputResult,
    InputThoughts,
)
from gateway.schemas import ChatMessage
from gateway.tool_schemas import FunctionCall, ToolCall, ToolCalls


@dataclass(slots=True)
class _Turn:
    """One message of the model, which an earlier response had as several items."""

    thoughts: str = ""
    text: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    def takes(self, item: InputItem) -> bool:
        """Whether the item is of this message, too: thoughts, then words once, and calls."""
        match item:
            case InputThoughts():
                return self.text is None and not self.calls
            case InputMessage():
                return item.role == "assistant" and self.text is None
            case InputCall():
                return True
            case InputResult():
                return False

    def messages(self) -> list[ChatMessage]:
        """None if it is empty."""
        if self.text is None and not self.calls and not self.thoughts:
            return []
        return [
            ChatMessage(
                role="assistant",
                content=self.text if self.calls else self.text or "",
                reasoning_content=self.thoughts or None,
                tool_calls=ToolCalls(self.calls) if self.calls else None,
            )
        ]


def messages(items: Iterable[InputItem]) -> list[ChatMessage]:
    """Raises InvalidRequest for a call whose arguments are no JSON."""
    told: list[ChatMessage] = []
    turn = _Turn()
    for place, item in enumerate(items):
        if not turn.takes(item):
            told += turn.messages()
            turn = _Turn()
        match item:
            case InputThoughts():
                turn.thoughts += item.text
            case InputCall():
                parsed(item.arguments, f"input.{place}.arguments", "input")
                function = FunctionCall(name=item.name, arguments=item.arguments)
                turn.calls.append(ToolCall(id=item.call_id, function=function))
            case InputMessage(role="assistant"):
                turn.text = item.text
            case InputMessage():
                told.append(ChatMessage(role=item.role, content=item.text))
            case InputResult():
                said = ChatMessage(role="tool", content=item.text, tool_call_id=item.call_id)
                told.append(said)
    return [*told, *turn.messages()]
