"""One log for every process: structlog's own lines and those of the libraries, on stderr.

Write ``log = structlog.get_logger(__name__)`` and log events with fields. Prompts, generated text
and token ids belong at level ``debug`` only; tracebacks are rendered without local variables for
the same reason.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["console", "json"]

#: Libraries whose "info" is chatter; they are heard from "warning" on unless the level is "debug".
_CHATTY = (
    "asyncio",
    "filelock",
    "grpc",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "sse_starlette",
    "urllib3",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
)


def configure(level: Level, format: Format, process: str) -> None:
    """Set up logging of this process; call it once, first thing in ``__main__``.

    ``process`` is a field of every JSON line. Console lines leave it out: alone, a process needs
    no name, and ``baton up`` puts one before each line.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    stamp: Processor = (
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if format == "json"
        else structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        stamp,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=_render(format, process),
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    logging.captureWarnings(True)
    for name in _CHATTY:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(number if level == "debug" else max(number, logging.WARNING))


def _render(format: Format, process: str) -> list[Processor]:
    """What turns an event into its line."""
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if format == "json":

        def name_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
            event["process"] = process
            return event

        return [
            strip,
            name_process,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    return [
        strip,
        structlog.dev.ConsoleRenderer(
            colors=_colours(),
            pad_event_to=24,
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _colours() -> bool:
    """On a terminal, or where ``baton up`` says that its own output is one."""
    if os.environ.get("NO_COLOR"):
        return False
    return sys.stderr.isatty() or bool(os.environ.get("FORCE_COLOR"))
