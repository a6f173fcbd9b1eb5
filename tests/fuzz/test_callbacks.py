"""Promises 7 and 8 against a fuzzer: whatever is posted is answered, and what is taken comes out well-formed."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.callbacks import bodies

ROOT = Path(__file__).parents[2]

#: So many bodies in CI, and by hand.
EXAMPLES = 20_000 if os.environ.get("CI") == "true" else 3_000
#: Bodies after which memory is what it will be, and bytes that it may grow from then on.
WARM = 1_500
GROWTH = 10 * 2**20


class Walker:
    """A process of its own that takes bodies the whole way."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.way", folder],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdout, contextlib.suppress(BrokenPipeError):  # of one that ended by itself
            self._process.stdin.close()
        assert self._process.wait(60) == 0, self._log.read_text()[-5_000:]

    def ask(self, body: bytes = b"") -> dict[str, Any]:
        """What became of a body; the figures so far if it is empty."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack(">I", len(body)) + body)
        self._process.stdin.flush()
        head = self._process.stdout.read(4)
        assert head, f"the process ended at {body[:1_000]!r}:\n{self._log.read_text()[-5_000:]}"
        found: dict[str, Any] = json.loads(self._process.stdout.read(struct.unpack(">I", head)[0]))
        return found

    def log_lines(self) -> Iterator[str]:
        return iter(self._log.read_text("utf-8").split("\n")[:-1])


@pytest.mark.timeout(600)
def test_whatever_is_posted_becomes_well_formed_topics_and_json_or_a_dead_letter(tmp_path: Path) -> None:
    """One callback that nobody thought of, and the webhook answers 500 for days, or Home Assistant chokes."""
    warm: list[int] = []
    posted = 0
    with Walker(tmp_path) as walker:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies())
        def post(body: bytes) -> None:
            nonlocal posted
            answer = walker.ask(body or b" ")
            assert "broken" not in answer, answer["broken"]
            posted += 1
            if posted == WARM:
                warm.append(walker.ask()["resident"])

        post()
        figures = walker.ask()
    grown = figures["resident"] - warm[0]
    print(figures, f"grown by {grown / 2**20:.1f} MiB")

    assert figures["posts"] >= EXAMPLES
    # It was no fuzzing at all if everything were refused, or if everything were taken.
    for outcome in ("stored", "duplicate", "ignored", "dead", "events", "states", "discoveries"):
        assert figures[outcome] > EXAMPLES / 100, figures
    assert grown < GROWTH, figures
    for line in walker.log_lines():
        assert json.loads(line)["level"] != "error", line
