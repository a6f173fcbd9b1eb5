"""What systemd wants to hear (sd_notify(3)): a datagram of a few lines, so no library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(**state: str | int) -> None:
    """Tell systemd, if it listens: `notify(READY=1, STATUS="connected")`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A line break in a value would be an assignment of its own.
    lines = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in state.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(lines.encode("utf-8", "replace"), address)


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants a sign of life; None if it does not."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000
