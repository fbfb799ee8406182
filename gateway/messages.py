"""Messages of a conversation as chat templates know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from baton.errors import InvalidRequest
from gateway.schemas import ChatMessage
from gateway.tool_schemas import ToolCall


def as_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Raises InvalidRequest, as ``as_dict``."""
    return [as_dict(message, place) for place, message in enumerate(messages)]


def as_dict(message: ChatMessage, place: int) -> dict[str, Any]:
    """Message number ``place`` (from 0). ``developer`` is the newer name of ``system``, which
    templates have.

    Raises InvalidRequest where fields do not fit the role.
    """
    name = f"messages.{place}"
    if message.role == "tool":
        if message.tool_call_id is None or message.content is None:
            raise InvalidRequest(
                f"'{name}' has role 'tool', which needs 'tool_call_id' and 'content'",
                param="messages",
            )
    elif message.tool_call_id is not None:
        raise _misplaced(name, "tool_call_id", message.role)
    if message.role != "assistant":
        for field in ("tool_calls", "reasoning_content"):
            if getattr(message, field) is not None:
                raise _misplaced(name, field, message.role)
    calls = message.tool_calls.root if message.tool_calls is not None else []
    if message.content is None and not calls:
        raise InvalidRequest(f"'{name}.content' is missing", param="messages")
    told: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.text,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": _calls(calls, name) if calls else None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _misplaced(name: str, field: str, role: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}.{field}' does not go with role {role!r}", param="messages")


def parsed(arguments: str, name: str, param: str) -> Any:
    """Of a call, as JSON that can be written again. Raises InvalidRequest, naming the field."""
    try:
        return from_json(arguments or "{}", allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"'{name}' is not JSON: {error}", param=param) from None


def _calls(calls: list[ToolCall], name: str) -> list[dict[str, Any]]:
    """Templates write the arguments as JSON themselves, so they get the value."""
    told = []
    for number, call in enumerate(calls):
        place = f"{name}.tool_calls.{number}.function.arguments"
        arguments = parsed(call.function.arguments, place, "messages")
        function = {"name": call.function.name, "arguments": arguments}
        told.append({"id": call.id, "type": call.type, "function": function})
    return told
