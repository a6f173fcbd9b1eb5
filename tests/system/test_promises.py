"""The campaigns of scripts/torture in their short form: the promises under what homes and servers do to a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.torture.campaigns import CAMPAIGNS

#: What test_faults.py tries step by step.
ELSEWHERE = {"power-cut", "io-faults", "corruption", "clock"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name in CAMPAIGNS if name not in ELSEWHERE])
def test_the_promises_hold_under(name: str, tmp_path: Path) -> None:
    """A user would lose a message, or open a gate twice, on the day the power fails."""
    campaign = CAMPAIGNS[name]
    missing = campaign.missing()
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} cannot run: {missing}")
        pytest.skip(f"{name} cannot run here: {missing}")
    figures = campaign.run(tmp_path, seed=1, count=campaign.short)
    print(name, figures)
