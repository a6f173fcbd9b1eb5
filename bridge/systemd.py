"""What systemd wants to hear (sd_notify(3)), and the socket that it hands over (sd_listen_fds(3)).

A datagram of a few lines and three variables of the environment, so no library.
"""

from __future__ import annotations

import contextlib
import os
import socket

#: The first file descriptor that systemd hands over (SD_LISTEN_FDS_START).
FIRST_INHERITED = 3


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


def inherited_socket() -> socket.socket | None:
    """The listening socket that systemd holds open for this service; None if there is none.

    Raises:
        OSError: What was handed over is no socket that listens, or more than one.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)  # a child must not take them for its own
    if not count.isdecimal() or int(count) == 0 or pid != str(os.getpid()):
        return None
    if int(count) > 1:
        raise OSError(f"{count} sockets were handed over")
    listener = socket.socket(fileno=FIRST_INHERITED)
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError("what was handed over is no listening stream")
    return listener
