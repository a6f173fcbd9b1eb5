"""What Docker Compose makes of the compose files; whether it takes them shows only where there is Docker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def refused(compose: dict[str, Any]) -> Iterator[str]:
    """What keeps Docker Compose from creating a container.

    Files go into one with a read-only root by mounts alone (docker/compose, pull request 12531: "`file` is the sole
    supported option"), so not from `content` or `environment`; what is `external` it has only in a swarm.
    """
    for name, service in compose["services"].items():
        for kind in ("configs", "secrets"):
            for one in service.get(kind, []):
                source = one if isinstance(one, str) else one["source"]
                if service.get("read_only") and "file" not in compose[kind][source]:
                    yield f"{name}: {kind}: {source}"


@pytest.mark.parametrize("file", ["compose.yaml", "compose.scale.yaml"])
def test_no_container_is_refused(file: str) -> None:
    """`docker compose up` would say so, and start nothing."""
    assert list(refused(yaml.safe_load((ROOT / file).read_text()))) == []


@pytest.mark.parametrize("kind", ["configs", "secrets"])
@pytest.mark.parametrize("form", [{"content": "a"}, {"environment": "A"}, {"external": True}, {"file": "a"}])
@pytest.mark.parametrize("mention", ["a", {"source": "a", "target": "/a"}])
def test_what_is_refused_is_seen(kind: str, form: dict[str, Any], mention: str | dict[str, str]) -> None:
    """A check that sees nothing is none."""
    compose = {"services": {"one": {"read_only": True, kind: [mention]}}, kind: {"a": form}}
    assert list(refused(compose)) == ([] if "file" in form else [f"one: {kind}: a"])
    compose["services"]["one"]["read_only"] = False
    assert list(refused(compose)) == []
