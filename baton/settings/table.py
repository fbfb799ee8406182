"""Every setting as a table: ``python -m baton.settings.table > docs/settings.md``.

Read from the classes themselves, so that no default is written down twice. A test holds the file
to what this prints.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from baton.flags import Placeholder
from baton.settings import (
    DecodeSettings,
    GatewaySettings,
    PrefillSettings,
    ProcessSettings,
    RelaySettings,
    UpSettings,
)

#: Who takes settings, as the table names them.
PROCESSES: dict[str, type[ProcessSettings]] = {
    "up": UpSettings,
    "gateway": GatewaySettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
    "relay": RelaySettings,
}

_HEAD = """\
# Settings

Made by `python -m baton.settings.table > docs/settings.md`; do not edit.

Every setting is a flag (`--max-running 8`), an environment variable (`BATON_MAX_RUNNING=8`) and a
key (`max_running: 8`) of the YAML file that `--config` or `BATON_CONFIG` names; the earlier wins.
In the file a list may be a YAML list. A process refuses a flag or a key of the file that is not
its own. A switch has both forms, `--mock` and `--no-mock` (`BATON_MOCK=off`); the table has the
one that changes the default.

*Of* says who takes it: `up` (`baton up`), `gateway` (`python -m gateway`), `prefill` and `decode`
(`python -m prefill_worker`, `python -m decode_worker`), `relay` (`python -m gateway.relay`). What
`baton up` takes beside its own goes to the processes that know it.
"""

_COLUMNS = "| flag | variable | default | of | meaning |\n|---|---|---|---|---|\n"

#: What stands for a value where the field names nothing better.
_PLAIN: dict[object, str] = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


def table() -> str:
    """The whole document, Markdown: a section for each class that defines settings."""
    sections = [f"\n## {_title(home)}\n\n{_COLUMNS}{_rows(home)}" for home in _homes()]
    return _HEAD + "".join(sections)


def _homes() -> Iterator[type[ProcessSettings]]:
    """Classes that define settings, each once: what all have first, ``baton up``'s own last."""
    every = dict.fromkeys(
        base
        for process in reversed(PROCESSES.values())
        for base in reversed(process.__mro__)
        if issubclass(base, ProcessSettings)
    )
    return (home for home in every if _own(home))


def _own(home: type[ProcessSettings]) -> list[str]:
    return [name for name in inspect.get_annotations(home) if name in home.model_fields]


def _title(home: type[ProcessSettings]) -> str:
    section = home.section
    return section[:1].upper() + section[1:]


def _rows(home: type[ProcessSettings]) -> str:
    return "".join(
        f"| `{_flag(name, home.model_fields[name])}` | `BATON_{name.upper()}` "
        f"| {_default(home.model_fields[name])} | {_takers(home, name)} "
        f"| {_plain(home.model_fields[name].description or '')} |\n"
        for name in _own(home)
    )


def _takers(home: type[ProcessSettings], name: str) -> str:
    """Processes whose setting of this name is the one that ``home`` defines."""
    takers = [
        title
        for title, process in PROCESSES.items()
        if next((b for b in process.__mro__ if name in inspect.get_annotations(b)), None) is home
    ]
    return "all" if len(takers) == len(PROCESSES) else ", ".join(takers)


def _flag(name: str, field: FieldInfo) -> str:
    """As one writes it: ``--host HOST``, ``--tls``, ``--quantize int8\\|int4``."""
    flag = f"--{name.replace('_', '-')}"
    kind = _bare(field.annotation)
    if kind is bool:
        return flag.replace("--", "--no-", 1) if field.default else flag
    if get_origin(kind) is Literal:
        return f"{flag} {_choice(get_args(kind))}"
    named = [mark.text for mark in field.metadata if isinstance(mark, Placeholder)]
    return f"{flag} {(named or [_PLAIN[kind]])[0]}".replace("|", "\\|")


def _bare(annotation: object) -> object:
    """The type without ``| None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(annotation) if part is not types.NoneType)
        return _bare(get_args(kind)[0]) if hasattr(kind, "__metadata__") else kind
    return annotation


def _choice(values: tuple[object, ...]) -> str:
    return "\\|".join(str(value) for value in values)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    written = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"`{written}`"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is; what is in backquotes stays."""
    return re.sub(r"([<|*])(?=(?:[^`]*`[^`]*`)*[^`]*$)", r"\\\1", text)


if __name__ == "__main__":
    sys.stdout.write(table())
