"""Children that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bridge import processes

CHILD = """
import os, sys, time
from bridge.processes import end_with_parent
end_with_parent(int(sys.argv[1]))
print("ready", flush=True)
while True:
    time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
while True:
    time.sleep(60)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    """A receiver that outlives a kill -9 holds the port: the bridge cannot start again until somebody ends it."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as said:
        assert said.readline() == "ready\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.wait() == -signal.SIGKILL
        # Both wrote here: the end is only seen when the last of them has ended.
        assert said.read() == ""


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    """Started a moment too late, it would never hear of its parent's end."""
    child = subprocess.run([sys.executable, "-c", CHILD, "-1"], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (1, "")


def test_the_order_is_asked_for_before_the_parent_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round, a parent that dies in between is missed."""
    done: list[tuple[object, ...]] = []

    class Kernel:
        def prctl(self, *arguments: int) -> int:
            done.append(arguments)
            return 0

    monkeypatch.setattr(processes, "_libc", Kernel())
    monkeypatch.setattr(os, "getppid", lambda: done.append(("looked",)) or 7)
    monkeypatch.setattr(os, "_exit", lambda code: done.append(("ended", code)))
    processes.end_with_parent(7)
    assert done == [(1, signal.SIGTERM), ("looked",)]
    done.clear()
    processes.end_with_parent(8, signal.SIGKILL)
    assert done == [(1, signal.SIGKILL), ("looked",), ("ended", 1)]
