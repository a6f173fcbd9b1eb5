"""A browser for all tests, bridges with a page, and somebody who looks at it and notices what is wrong."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.chromium import Onlooker, chromium
from tests.system.support import Bridge, free_port

MakeBridge = Callable[..., Bridge]
Look = Callable[..., Onlooker]

#: The page asks every two seconds; on a busy machine what it asks for takes its time.
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ended with the last test here: while its driver runs, its thread can run no other event loop."""
    with chromium() as running:
        yield running


@pytest.fixture
def make_bridge(tmp_path: Path) -> Iterator[MakeBridge]:
    """Makes bridges with a page, each with a folder of its own, not yet started; `page` is its address."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def make(**settings: str) -> Bridge:
            folder = tmp_path / f"bridge{next(numbers)}"
            folder.mkdir()
            port = free_port()
            bridge = Bridge(folder, **{"admin__listen": f"127.0.0.1:{port}", **settings})
            bridge.page = f"http://127.0.0.1:{port}"
            stack.push(bridge.__exit__)
            return bridge

        yield make


@pytest.fixture
def bridge(make_bridge: MakeBridge) -> Bridge:
    """A bridge with default settings that is ready."""
    return make_bridge().start()


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Opens a bridge's page; at the end, nothing may have gone wrong in the browser."""
    with contextlib.ExitStack() as stack:

        def open_page(bridge: Bridge, path: str = "/", **how: object) -> Onlooker:
            onlooker = stack.enter_context(Onlooker(browser, bridge.page, **how))
            onlooker.go(path)
            return onlooker

        yield open_page
