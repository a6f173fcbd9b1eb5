"""Children that end with their parent, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(parent: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel end this process when the thread that started it ends (`prctl(2)`, PR_SET_PDEATHSIG).

    Args:
        parent: Process id of the parent; if it is gone already, this process ends here.
        by: The signal. It can come several times: of a parent that is killed, one thread ends after the other.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)
