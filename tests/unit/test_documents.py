"""Documents name what there is: files, headings, settings, metrics, fields of ``/cluster``."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from functools import cache
from pathlib import Path

import pytest

from baton.identity import CompatibilityClass
from baton.settings.table import PROCESSES, table
from gateway import status
from gateway.fleet import KvPairing, Load, PrefillDecision, Transport
from tests import telemetry
from tests.telemetry import ROOT

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"`(\w[\w./-]*\.(?:py|md|c|h|yml|yaml|proto|json|toml))`")


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


#: Those that say what is; the others what was.
PRESENT = [path for path in documents() if path.name not in {"LOG.md", "CHANGELOG.md"}]


@cache
def files() -> frozenset[str]:
    """Every file of the repository, and every end of its path from a slash on."""
    found = set[str]()
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [n for n in inner if not n.startswith(".") and n not in {"build", "shared"}]
        for name in names:
            parts = (Path(folder) / name).relative_to(ROOT).parts
            found.update("/".join(parts[i:]) for i in range(len(parts)))
    return frozenset(found)


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in (a or b for a, b in _LINK.findall(prose(path))):
        if re.match(r"[a-z]+:", link):
            continue
        where, _, anchor = link.partition("#")
        target = (path.parent / where).resolve() if where else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_are_there(path: Path) -> None:
    missing = [name for name in _FILE.findall(prose(path)) if name not in files()]
    assert missing == []


def test_the_table_of_settings_is_current() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == table(), (
        "run: python -m baton.settings.table > docs/settings.md"
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_finds_each_of_its_settings_once(name: str) -> None:
    rows = re.findall(r"`BATON_(\w+)` \| ([^|]*) \| ([^|]*) \|", table())
    of = [
        (key.lower(), default)
        for key, default, takers in rows
        if {name, "all"} & {*takers.split(", ")}
    ]
    fields = PROCESSES[name].model_fields
    assert sorted(key for key, _ in of) == sorted(fields)
    for key, shown in of:
        default = fields[key].default
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            assert shown == f"`{default}`", key


def test_the_index_has_every_document() -> None:
    index = ROOT / "docs/README.md"
    text = index.read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        assert path == index or f"({path.relative_to(ROOT / 'docs')})" in text, path.name


OPERATING = sorted((ROOT / "docs/operating").glob("*.md"))


@pytest.mark.parametrize("path", OPERATING, ids=lambda path: path.name)
def test_operators_are_sent_to_metrics_and_flags_that_there_are(path: Path) -> None:
    text, metrics = path.read_text(encoding="utf-8"), telemetry.table()
    for name in re.findall(r"`(baton_\w+)", text):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in metrics or base in metrics or name in {"baton_timings", "baton_resume"}, name
    taken = {field for process in PROCESSES.values() for field in process.model_fields}
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", prose(path)):
        assert flag.replace("-", "_") in taken, flag


@pytest.mark.parametrize("path", OPERATING, ids=lambda path: path.name)
def test_operators_are_sent_to_fields_and_log_lines_that_there_are(path: Path) -> None:
    """Fields of ``/cluster`` are written as jq has them; log lines after the word ``log``."""
    text = path.read_text(encoding="utf-8")
    for field in re.findall(r"`\.(gateway|workers\[\])\.([\w.\[\]]+)", text):
        assert _told(*field), field
    sources = "".join(
        source.read_text(encoding="utf-8")
        for package in ("baton", "gateway", "model", "prefill_worker", "decode_worker")
        for source in (ROOT / package).rglob("*.py")
    )
    for line in re.findall(r"\blog `([^`]+)`", text):
        assert f'"{line}"' in sources, line


def _told(root: str, field: str) -> bool:
    """Whether ``/cluster`` has it."""
    first, _, second = field.replace("[]", "").partition(".")
    parts = {"load": Load, "kv_pairings": KvPairing, "prefill_decisions": PrefillDecision}
    parts |= {"transports": Transport, "compatibility": CompatibilityClass}
    known = first in re.findall(r'^ +"(\w+)":', inspect.getsource(status), re.M)
    return known and (not second or second in {f.name for f in dataclasses.fields(parts[first])})
