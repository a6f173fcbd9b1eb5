"""The dashboard for Grafana asks for metrics and labels that a real bridge has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.hostile import TEXTS
from tests.system.support import Bridge, status
from tests.system.test_admin import ask

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "grafana" / "whatsapp2mqtt.json").read_text(encoding="utf-8")
)
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
FUNCTIONS = {"rate", "increase", "sum", "by", "histogram_quantile", "time"}


def test_every_expression_asks_for_what_there_is(bridge: Bridge) -> None:
    """A panel would say "No data" for ever, and nobody would know whether that is good."""
    assert bridge.post(status("m1", "read")).status == 200
    with bridge.listen() as subscriber:
        subscriber.wait("whatsapp/m1/status")
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(ask(bridge, "/metrics").text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    assert EXPRESSIONS
    for title, expression in EXPRESSIONS:
        grouped = {name for group in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", group)}
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", "", expression)
        names = {word for word in re.findall(r"[a-z_][a-z0-9_]+", bare) if word not in FUNCTIONS}
        assert names, title
        for name in names:
            assert name in known, f"{title}: there is no {name}"
            assert grouped <= known[name], f"{title}: {name} has the labels {known[name]}"
        legends = re.findall(r"\{\{(\w+)\}\}", json.dumps(DASHBOARD["panels"]))
        assert set(legends) <= {label for some in known.values() for label in some}


def test_panels_are_whole_and_do_not_lie_upon_each_other() -> None:
    """Grafana takes anything, and shows what it can."""
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_nothing_from_outside_makes_a_label(bridge: Bridge) -> None:
    """Whoever may post could fill Prometheus' memory, or write a line of their own into it."""
    before = {(sample.name, *sorted(sample.labels.items())) for sample in samples(bridge)}
    for number, text in enumerate(TEXTS.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            continue
        bridge.post(status(f"{number}{text}", text or "sent"))
        bridge.post(text.encode())
    after = {(sample.name, *sorted(sample.labels.items())) for sample in samples(bridge)}
    assert after == before


def samples(bridge: Bridge) -> list[Any]:
    return [one for family in text_string_to_metric_families(ask(bridge, "/metrics").text) for one in family.samples]
