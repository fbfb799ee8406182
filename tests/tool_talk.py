"""A model that calls tools and thinks, in small: its template, tools, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes import write_checkpoint

#: Tells of tools and thoughts as Qwen3's template does, in small.
TEMPLATE = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{% endfor %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
STOP: dict[str, Any] = {"type": "function", "function": {"name": "stop"}}
CALLS = (
    "<think>\nFirst \u20ac\n</think>\n\nAdding.\n"
    '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
JSON_SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": SCHEMA},
}


def write_talking_checkpoint(folder: Path) -> Path:
    """The toy's, with that template."""
    write_checkpoint(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
