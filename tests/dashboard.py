"""``deploy/grafana/baton.json`` as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.telemetry import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "baton.json"


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries(values: Mapping[str, str]) -> dict[str, str]:
    """Every query by panel and legend, with ``values`` in place of variables."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in values.items():
                query = query.replace(f"${name}", value)
            found[f"{panel['title']}: {target['legendFormat']}"] = query
    return found
