"""Who may ask for the time of day: clocks jump, and nothing that waits or expires may follow."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("baton", "gateway", "prefill_worker", "decode_worker", "model")
#: What clients, prompts, operators and traces are told the time to be.
ALLOWED = {
    "baton/metrics/usage.py",
    "baton/otel.py",
    "baton/top/panels.py",
    "baton/top/scene.py",
    "gateway/chat_template.py",
    "gateway/requests.py",
    "gateway/responses/answers.py",
    "gateway/status.py",
    "gateway/telling/broadcast.py",
}
_OF_TIME = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "asctime"}
_OF_DATETIME = {"now", "utcnow", "today"}


def asks(tree: ast.AST) -> bool:
    """Whether code calls, or imports by name, what tells the time of day."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = (node.value.id, node.attr)
            if name[0] == "time" and name[1] in _OF_TIME:
                return True
            if name[0] in ("datetime", "date") and name[1] in _OF_DATETIME:
                return True
        names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        if names & _OF_TIME and isinstance(node, ast.ImportFrom) and node.module == "time":
            return True
    return False


def test_only_what_is_told_to_people_asks_for_the_time_of_day() -> None:
    asking = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if asks(ast.parse(path.read_text()))
    }
    assert asking == ALLOWED
