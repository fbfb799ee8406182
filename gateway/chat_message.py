"""The message of a chat answer, whole and piece by piece: words, thoughts and calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.answers import AnswerMessage, CalledFunction, ToolCallBody
from gateway.tool_calls import CallDelta
from gateway.transcript import Piece


def message(pieces: Sequence[Piece]) -> AnswerMessage:
    """Of a whole answer."""
    text = "".join(piece.text for piece in pieces)
    told: AnswerMessage = {"role": "assistant", "content": text, "refusal": None}
    if reasoning := "".join(piece.reasoning for piece in pieces):
        told["reasoning_content"] = reasoning
    calls: list[ToolCallBody] = []
    for part in (part for piece in pieces for part in piece.calls):
        if part.id:
            calls.append(_begun(part))
        else:
            calls[part.index]["function"]["arguments"] += part.arguments
    if calls:
        told["tool_calls"] = calls
        told["content"] = text or None
    return told


def delta(piece: Piece) -> dict[str, Any]:
    """What a piece adds to the message."""
    told: dict[str, Any] = {}
    if piece.reasoning:
        told["reasoning_content"] = piece.reasoning
    if piece.text:
        told["content"] = piece.text
    if piece.calls:
        told["tool_calls"] = [_call(part) for part in piece.calls]
    return told


def _begun(part: CallDelta) -> ToolCallBody:
    function: CalledFunction = {"name": part.name, "arguments": part.arguments}
    return {"id": part.id, "type": "function", "function": function}


def _call(part: CallDelta) -> dict[str, Any]:
    if not part.id:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    return {"index": part.index, **_begun(part)}
