"""Coverage-guided fuzzing by atheris: `python -m tests.fuzz [bytes|shapes] [OPTION OF LIBFUZZER ...]`.

What breaks stands in `crash-…` in the folder from which it was started; the same command with that file as its last
argument shows it again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import click
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["bridge"]):
    from bridge import logs
    from tests.fuzz.callbacks import bodies
    from tests.fuzz.way import MAX_BODY, Way
    from tests.unit import test_payloads


def by_bytes(way: Way) -> Callable[[bytes], None]:
    """The bytes are the body."""
    return lambda data: way.post(data or b" ")


def by_shapes(way: Way) -> Callable[[bytes], None]:
    """The bytes decide what hypothesis makes."""

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies())
    def post(body: bytes) -> None:
        way.post(body or b" ")

    found: Callable[[bytes], None] = post.hypothesis.fuzz_one_input
    return found


KINDS = {"bytes": by_bytes, "shapes": by_shapes}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("kind", type=click.Choice(list(KINDS)), default="bytes")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(kind: str, options: tuple[str, ...]) -> None:
    """Look for a callback that the bridge does not bear, until a time or a count that OPTIONS say."""
    logs.configure("error", "json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = folder / "seeds"
        seeds.mkdir()
        for number, file in enumerate(test_payloads.FILES if kind == "bytes" else ()):
            (seeds / str(number)).write_bytes(test_payloads.bodies(test_payloads.read(file))[0])
        with Way(folder) as way:
            found = [] if any(Path(one).is_file() for one in options) else [str(seeds)]
            limits = [f"-max_len={MAX_BODY // 10}", "-timeout=20"]
            atheris.Setup([sys.argv[0], *limits, *options, *found], KINDS[kind](way))
            atheris.Fuzz()


if __name__ == "__main__":
    main()
