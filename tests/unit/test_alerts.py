"""The alert rules: valid, about metrics that exist, tested, and explained."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from baton.settings import DecodeSettings, GatewaySettings, PrefillSettings
from tests.telemetry import ROOT, promtool, table, wrong_in

FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "alerts.yml"
RUNBOOK = ROOT / "docs" / "alerts.md"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_rule_asks_for_what_is_told() -> None:
    known = table()
    assert {r["alert"]: wrong for r in rules() if (wrong := wrong_in(r["expr"], known))} == {}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("rate(baton_nothing_total[5m])", "baton_nothing_total is no series"),
        ("baton_time_to_first_token_seconds", "baton_time_to_first_token_seconds is no series"),
        ("baton_queue_tokens_count", "baton_queue_tokens_count is no series"),
        ('baton_requests_total{reason="x"}', "baton_requests_total has no label reason"),
        ("sum by (transport) (baton_queue_tokens)", "no metric has label transport"),
    ],
)
def test_a_query_for_what_is_not_told_is_found(query: str, said: str) -> None:
    assert wrong_in(query, table()) == [said]


def test_every_alert_is_explained_where_it_says() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", text, re.M)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / page == RUNBOOK
        assert anchor == rule["alert"].lower()


def test_the_runbook_names_metrics_and_flags_that_there_are() -> None:
    text, known = RUNBOOK.read_text(encoding="utf-8"), table()
    for name in re.findall(r"`(baton_\w+)`", text):
        assert name in known or name == "baton_resume", name
    kinds = (DecodeSettings, GatewaySettings, PrefillSettings)
    flags = {field for kind in kinds for field in kind.model_fields}
    for flag in re.findall(r"--([a-z][a-z-]+)", text):
        assert flag.replace("-", "_") in flags, flag


def test_every_alert_has_a_test() -> None:
    tested = (FOLDER / "alerts_test.yml").read_text()
    for rule in rules():
        assert f'alertname="{rule["alert"]}"' in tested


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should() -> None:
    done = promtool("test", "rules", FOLDER / "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
