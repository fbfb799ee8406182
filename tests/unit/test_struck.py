"""Who is given up stays given up, but not for ever in our memory."""

from __future__ import annotations

from baton.kv.struck import MOST, Struck


def test_the_oldest_of_very_many_are_forgotten() -> None:
    struck = Struck()
    for number in range(MOST + 1):
        struck.add(f"i{number}", "short block")
        struck.add("i1", "again and again")
    assert struck.why("i0") == struck.why("unheard of") == ""
    assert struck.why("i1") == "given up: again and again"
    assert struck.why(f"i{MOST}") == "given up: short block"
