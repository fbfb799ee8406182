"""A checkpoint's own chat template, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, NoReturn

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton.errors import InvalidRequest

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders messages as the model was trained to read them.

    Raises ``jinja2.TemplateSyntaxError`` when made from a broken template.
    """

    #: Arguments that come from elsewhere in a request.
    OURS: ClassVar = frozenset({"messages", "add_generation_prompt", "tools", "documents"})

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        self.source = source
        self._template = environment.from_string(source)
        self._known = jinja2.meta.find_undeclared_variables(environment.parse(source))
        self._special_tokens = dict(special_tokens)

    def knows(self, name: str) -> bool:
        """Whether it looks at an argument of that name."""
        return name in self._known and name not in self._special_tokens

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, up to where the answer begins. ``arguments`` are the template's own, none
        of ``OURS``.

        Raises InvalidRequest with the template's own words when it refuses the messages.
        """
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=tools,
                documents=None,
                **self._special_tokens,
                **(arguments or {}),
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
