"""Logs: readable on a terminal, JSON otherwise; one line a fact.

Promise kept here (numbers as in docs/how-it-works.md):
  7. Hostile text stays text: values are escaped, so no line break or escape code of a callback reaches the log; the
     path token of the webhook's address reaches it never, and phone numbers are masked whoever logs them.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from bridge.privacy import masked

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

#: Whoever kept a logger keeps an object of this class: its methods are exchanged where the level is changed, and what
#: is not to be said costs no more than a call of a function that does nothing.
_Logger: Any = type("_Logger", (structlog.make_filtering_bound_logger(logging.INFO),), {})
_METHODS = ("debug", "info", "warning", "warn", "error", "critical", "fatal", "exception", "log")

#: Keys whose values never reach a log, whoever logs them.
SECRET_KEYS = frozenset({"password", "token", "secret", "authorization", "body"})


def configure(level: str, style: str) -> None:
    """Set up this process' logs, ours and those of the libraries, on standard error.

    Args:
        level: debug, info, warning or error.
        style: `text`, `json`, or `auto` for text on a terminal and JSON otherwise.
    """
    readable = style == "text" or (style == "auto" and sys.stderr.isatty())
    timestamps = structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        hide_secrets,
        timestamps,
        structlog.processors.format_exc_info,
        mask_numbers,
    ]
    renderers: list[structlog.typing.Processor] = [structlog.processors.JSONRenderer()]
    if readable:
        # Of itself it writes texts as they are: escape codes, and line breaks in events and exceptions.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        )
        renderers = [escape_text, console]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=_Logger,
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # granian and others use the standard library's logging; their lines go the same way.
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.getLogger().handlers = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Say more or less from now on; from any thread.

    Args:
        level: debug, info, warning or error.
    """
    filtering: Any = structlog.make_filtering_bound_logger(LEVELS[level])
    for name in _METHODS:
        setattr(_Logger, name, getattr(filtering, name))
    logging.getLogger().setLevel(max(LEVELS[level], logging.WARNING))


#: For granian, which sets up logging anew in each of its processes: its lines go to our handler, errors only.
GRANIAN_LOGGING: dict[str, Any] = {
    "version": 1,
    "incremental": False,
    "disable_existing_loggers": False,
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "level": "ERROR", "propagate": True}},
}


def hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in SECRET_KEYS & event.keys():
        event[key] = "********"
    return event


def mask_numbers(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask phone numbers, also those in ids, whatever `privacy.numbers` says: logs are copied and shown to others."""
    for key, value in event.items():
        if key != "timestamp":
            event[key] = _masked(value)
    return event


def _masked(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value  # our own counts and sizes; what callbacks bring is text
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {_masked(key): _masked(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(below) for below in value]
    shown = repr(value)
    hidden = masked(shown)
    return value if hidden == shown else hidden


def escape_text(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For the terminal: one line an event, and below it an exception's, each marked as such."""
    event["event"] = printable(str(event["event"]))
    if "exception" in event:
        lines = str(event["exception"]).split("\n")
        event["exception"] = "\n".join(f"  | {printable(line)}" for line in lines)
    return event


def printable(text: str) -> str:
    """With what is no visible character or space (controls, line ends, bidirectional marks) as its escape."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
