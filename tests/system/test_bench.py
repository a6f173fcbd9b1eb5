"""Each case of `scripts/bench`, too small for figures: whether it runs, and whether all arrives, and once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.__main__ import run
from tests.bench.cases import TINY, cases
from tests.bench.ground import Shelf
from tests.bench.report import GOALS

SHELF = Shelf()
#: Without Node-RED, which npm would have to bring; the bridge's sides are the same.
CASES = cases(None, TINY, SHELF)


@pytest.fixture(scope="module", autouse=True)
def _shelf() -> Iterator[None]:
    with SHELF:
        yield


@pytest.mark.parametrize("name", CASES)
def test_a_case_measures_each_side_and_nothing_is_lost_or_doubled(name: str) -> None:
    """Figures would be those of a bridge that drops what it is too slow for, or of a bench that measures nothing."""
    found = run(CASES[name], rounds=1)
    for side, figures in found["sides"].items():
        for figure, one in figures.items():
            if figure in ("missing", "doubled", "refused"):
                assert one["max"] == 0, f"{side}: {figure}"
            elif figure != "idle_cpu_percent" and not figure.startswith("cpu_"):
                assert one["min"] > 0, f"{side}: {figure}"
        if side == next(iter(found["sides"])) and name != "idle":
            assert "missing" in figures, "the bridge's updates are looked for at the subscriber"
            assert "doubled" in figures
    for goal in GOALS:
        if goal.case == name and goal.peer != "node-red":
            assert goal.measured({"cases": {name: found}}), f"what {goal.about!r} is read from"
