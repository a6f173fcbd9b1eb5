"""To ask the bridge that runs on this machine: at the address and with the token that it leaves beside its journal.

And to ask its webhook whether it answers, for which one needs to know no more than where it listens.
"""

from __future__ import annotations

import fcntl
import http.client
import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bridge.config import Address, Settings

#: Seconds that an answer may take.
PATIENCE = 5.0


class NotRunningError(Exception):
    """No bridge with these settings runs here, or it cannot be asked; the message says why and what to do."""


class SilentError(NotRunningError):
    """One has left its address, and nobody answers there."""


class HiddenError(NotRunningError):
    """Whether one runs only its own user can see."""


class RefusedError(Exception):
    """The bridge does not do what was asked; the message says why."""


def ask(settings: Settings, path: str, body: object = None) -> tuple[int, Any]:
    """Ask it.

    Args:
        settings: Its settings.
        path: Of its page's listener, e.g. `api/status`.
        body: JSON to be posted; None: nothing is.

    Returns:
        The status code, and the answer's JSON.

    Raises:
        NotRunningError: None has left its address.
        SilentError: Nobody answers there.
        HiddenError: This user may not know.
    """
    beside = settings.journal_path.with_suffix(".admin")
    try:
        key = json.loads(beside.read_bytes())
    except FileNotFoundError:
        if settings.admin.listen is None:
            raise NotRunningError("admin.listen is off, so a running bridge cannot be asked; set it") from None
        raise NotRunningError("the bridge does not run here, or with other settings; name its --config") from None
    except OSError as error:
        raise HiddenError(f"{beside}: cannot be read: {error.strerror}; ask as the bridge's user") from error
    url = urlsplit(key["url"])
    headers = {"Authorization": f"Bearer {key['token']}", "Content-Type": "application/json"}
    with closing(http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=PATIENCE)) as connection:
        try:
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", f"/{path}", text, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SilentError(f"nothing answers at {key['url']}; the bridge has ended, or hangs") from error


def answers(webhook: Address, patience: float = PATIENCE) -> bool:
    """Whether the webhook answers: a connection would be accepted by the kernel without anybody behind it.

    Args:
        webhook: Where it listens.
        patience: Seconds that it may take.
    """
    with closing(http.client.HTTPConnection(webhook.nearby, webhook.port, timeout=patience)) as connection:
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        return True


def is_held(journal: Path) -> bool:
    """Whether somebody holds the journal's lock: a bridge does, and a command that must be alone with it.

    Args:
        journal: Where it is; the lock stands beside it.
    """
    try:
        with journal.with_suffix(".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
