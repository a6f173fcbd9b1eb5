"""How much the bridge says, changed while it runs: by SIGUSR1, or by a request."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

import structlog

from bridge import logs
from bridge.meter import Meters

log = structlog.get_logger()

#: debug, and back.
SIGNAL = signal.SIGUSR1


def hold_signals() -> None:
    """Keep the signal for `LogLevel.run`; called before any thread or process is started, as all of them inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})


class LogLevel:
    """The level in force, of this process and of the receivers; `run` is the thread that waits for the signal.

    Args:
        configured: What the settings say.
        meters: Tells receivers.
        receivers: Their process ids, now.
    """

    def __init__(self, configured: str, meters: Meters, receivers: Callable[[], Iterable[int]]) -> None:
        self.configured = configured
        self.current = configured
        self._meters = meters
        self._receivers = receivers

    def run(self) -> None:
        """Change between debug and what the settings say at each signal, for ever."""
        while True:
            signal.sigwait({SIGNAL})
            self.change("debug" if self.current == self.configured != "debug" else self.configured)

    def change(self, level: str) -> None:
        """Have every process say so much from now on; from any thread.

        Args:
            level: debug, info, warning or error.
        """
        self.current = level
        self._meters.set_log_level(level)
        logs.set_level(level)
        for receiver in self._receivers():
            try:
                os.kill(receiver, SIGNAL)
            except ProcessLookupError:
                continue  # it has just ended; the next one looks when it starts
        log.warning("the log level is changed", to=level)
