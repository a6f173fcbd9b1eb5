"""The README's commands, run as they stand there, in a fresh copy of this folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.system.support import Program, clean_environment

ROOT = Path(__file__).parents[2]
DEFAULT_PORTS = {"webhook.listen": 8080, "mqtt.embedded.listen": 1883}
NOT_CLONED = shutil.ignore_patterns(".git", ".venv", ".*cache", ".hypothesis", "__pycache__", "dist", ".coverage*")


def blocks() -> list[tuple[str, str]]:
    """The fenced blocks: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def without_what_changes(text: str) -> list[str]:
    """The lines without times, ids and folders."""
    for pattern in (
        r"wamid\.[\w=+/]+",
        r"(?<=[\s\"])/(?:[\w.-]+/)+",
        r"\d{4}-\d\d-\d\dT[\d:.]+Z",
        r"\d\d:\d\d:\d\d",
        r"\d{10}\b",
        r"whatsapp2mqtt \d+\.\d+\.\d+",
    ):
        text = re.sub(pattern, "…", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `git clone` brings, on a machine whose default ports are free."""
    for setting, port in DEFAULT_PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                reason = f"port {port} is taken, and it is the default of {setting}"
                pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return Path(shutil.copytree(ROOT, tmp_path / "whatsapp2mqtt", ignore=NOT_CLONED))


@pytest.mark.timeout(600)  # the first command installs the package and what it needs
def test_the_commands_of_the_readme_do_what_it_says(clone: Path, tmp_path: Path) -> None:
    """They are the first that a new user types; if one fails, it is also the last."""
    environment = clean_environment(tmp_path)
    with contextlib.ExitStack() as stack:
        running: list[Program] = []
        ended: Program | None = None
        for language, text in blocks():
            if language == "text":
                # The output of the command above it, or of one that still runs.
                wanted = set(without_what_changes(text))
                if ended is None or not wanted <= set(without_what_changes(ended.said)):
                    await_lines(running[-1], wanted)
            if language != "sh":
                continue
            if "scripts/run" in text:  # as the README says, with Ctrl+C
                codes = [program.end(signal.SIGINT) for program in running]
                assert set(codes) <= {0, 130}
                running.clear()
            goes_on = re.search(r"scripts/run|whatsapp2mqtt tail", text)
            program = stack.enter_context(
                Program(["bash", "-euc", f"exec {text}" if goes_on else text], clone, environment)
            )
            if goes_on:
                running.append(program)
                program.wait_said('"event": "ready"' if "scripts/run" in text else "bridge/state")
            else:
                assert program.wait() == 0, program.said
                ended = program
        assert len(running) == 1


def await_lines(program: Program, wanted: set[str]) -> None:
    program.wait_until(lambda: wanted <= set(without_what_changes(program.said)))
