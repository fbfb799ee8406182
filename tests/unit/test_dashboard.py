"""The dashboard asks for metrics and labels that there are; whether they have data, tests/e2e."""

from __future__ import annotations

import re

from tests.dashboard import dashboard, panels, queries
from tests.telemetry import table, wrong_in

VALUES = {"job": ".*", "instance": ".*", "__rate_interval": "1m"}


def test_every_query_asks_for_what_is_told() -> None:
    known, asked = table(), queries(VALUES)
    assert len(asked) == sum(len(panel["targets"]) for panel in panels())
    assert {title: wrong for title, q in asked.items() if (wrong := wrong_in(q, known))} == {}


def test_every_variable_is_defined_and_every_query_heeds_it() -> None:
    defined = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert defined == {"datasource", "job", "instance"}
    for title, query in queries({"__rate_interval": "1m"}).items():
        assert set(re.findall(r"\$(\w+)", query)) == {"job", "instance"}, title


def test_legends_name_labels_of_their_queries() -> None:
    known = table()
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            told = {
                label
                for name, row in known.items()
                if name in target["expr"]
                for label in row.labels | {"job", "instance"}
            }
            assert named <= told, panel["title"]


def test_no_panel_covers_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not own & cells and at["x"] + at["w"] <= 24, panel["title"]
        cells |= own
