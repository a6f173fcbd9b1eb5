"""docs/performance.json has all that docs/performance.md speaks of; that the page says it, test_reference holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.cases import Size, cases
from tests.bench.ground import Shelf
from tests.bench.report import GOALS, Goal, headline, page

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))


def test_what_was_measured_are_cases_that_there_are_in_five_rounds_each() -> None:
    """A reader would look for a case that is only spoken of, or trust a lucky round."""
    assert set(MEASURED["cases"]) <= set(cases(Path("node-red"), Size(), Shelf()))
    assert all(case["rounds"] >= 5 for case in MEASURED["cases"].values())


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.case} {goal.figure}")
def test_a_goal_has_a_figure(goal: Goal) -> None:
    """An empty cell would stand for what is promised."""
    assert goal.measured(MEASURED)


def test_the_readme_says_what_was_measured() -> None:
    """The first figures that a reader sees would be those of another year."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert headline(MEASURED) in readme, f"write into README.md: {headline(MEASURED)}"


def test_nothing_was_lost_or_doubled_in_any_round_that_is_shown() -> None:
    """Fast would be easy."""
    for row in page(MEASURED)["rates"]:
        assert row[2:] in (("0", "0"), ("", "")), row[0]


@pytest.mark.parametrize(
    ("value", "least", "aim", "word"),
    [
        (2.3, 1.5, 2.2, "aim"),
        (1.6, 1.5, 2.2, "least"),
        (1.4, 1.5, 2.2, "missed"),
        (0.3, 0.6, 0.4, "aim"),
        (0.7, 0.6, 0.4, "missed"),
    ],
)
def test_a_figure_reaches_the_better_of_two_bounds(value: float, least: float, aim: float, word: str) -> None:
    """A table that says "reached" of what was missed deceives its reader."""
    assert Goal("", "", "", None, least, aim, is_most=least > aim).reached(value) == word
