"""What can be asked of the bridge by MQTT, and what is done then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from bridge.config import Settings
from bridge.dead_letters import journal_of, replay
from bridge.journal import JournalError, NotStoredError
from bridge.keeper import Keeper
from bridge.loglevel import LogLevel
from bridge.logs import LEVELS
from bridge.requests import Deed, RefusedError

#: Dead letters that one request tries again.
LETTERS = 100


def deeds_of(settings: Settings, reconnect: Callable[[], None], keeper: Keeper, log_level: LogLevel) -> dict[str, Deed]:
    """What can be asked for, by the names in `mqtt.requests`."""
    return {
        "health": lambda _: _health(keeper.report),
        "dead_letters": lambda asked: _replay(settings, asked),
        "log_level": lambda asked: _change(log_level, asked),
        "reconnect": lambda _: _reconnect(reconnect),
    }


def _health(report: bytes) -> dict[str, Any]:
    if not report:
        raise RefusedError("the bridge has just started; ask again in a second")
    found: dict[str, Any] = orjson.loads(report)
    return found


def _replay(settings: Settings, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Try dead letters again: those that are named, or the oldest."""
    numbers = asked.get("numbers")
    if numbers is not None and (
        not isinstance(numbers, list) or len(numbers) > LETTERS or not all(type(one) is int for one in numbers)
    ):
        raise RefusedError(f"numbers: is no list of {LETTERS} whole numbers at most")
    worked = failed = 0
    try:
        with journal_of(settings) as journal:
            letters = sorted(journal.dead_letters(limit=1_000_000), key=lambda letter: letter.number)
            wanted = letters[:LETTERS] if numbers is None else [one for one in letters if one.number in numbers]
            for letter in wanted:
                if replay(settings, journal, letter)[0]:
                    worked += 1
                else:
                    failed += 1
    except (JournalError, NotStoredError) as error:
        raise RefusedError(str(error)) from error
    return {"worked": worked, "failed": failed, "left": len(letters) - worked}


def _change(log_level: LogLevel, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Say more: whoever may ask must not be able to silence what the log says about it."""
    level = asked.get("level", log_level.current)
    if not isinstance(level, str) or level not in LEVELS:
        raise RefusedError(f"level: is none of {', '.join(LEVELS)}")
    if LEVELS[level] > LEVELS[log_level.configured]:
        raise RefusedError(f"level: the settings say {log_level.configured}, and a request cannot have less said")
    if level != log_level.current:
        log_level.change(level)
    return {"level": level}


def _reconnect(renew: Callable[[], None]) -> dict[str, Any]:
    renew()
    return {}
