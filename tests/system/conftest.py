"""What system tests share: bridges that are gone when the test is."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.support import Bridge, Program, free_port, program

MakeBridge = Callable[..., Bridge]


@pytest.fixture
def make_bridge(tmp_path: Path) -> Iterator[MakeBridge]:
    """Makes bridges, each with a folder of its own, not yet started."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def make(**settings: str) -> Bridge:
            folder = tmp_path / f"bridge{next(numbers)}"
            folder.mkdir()
            bridge = Bridge(folder, **settings)
            stack.push(bridge.__exit__)
            return bridge

        yield make


@pytest.fixture
def bridge(make_bridge: MakeBridge) -> Bridge:
    """A bridge with default settings that is ready."""
    return make_bridge().start()


@pytest.fixture
def mosquitto() -> Iterator[int]:
    """The port of a mosquitto."""
    port = free_port()
    with Program([program("mosquitto"), "-p", port], Path("/"), dict(os.environ)) as running:
        running.wait_said("running")
        yield port
