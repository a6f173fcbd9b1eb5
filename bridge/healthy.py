"""Whether a bridge that runs on this machine is well, for whoever watches it: Docker, Kubernetes, monit."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from contextlib import closing
from urllib.parse import urlsplit

from bridge.config import Settings

#: Seconds that an answer may take.
PATIENCE = 5.0


def unwell(settings: Settings) -> str | None:
    """Why the bridge with these settings is not well, in words for the user; None if it is.

    Its page says so, at the address and with the token that the running bridge leaves beside its journal. Where the
    page is off, the webhook must answer.
    """
    try:
        key = json.loads(settings.journal_path.with_suffix(".admin").read_bytes())
    except FileNotFoundError:
        listen = settings.webhook.listen
        return None if _ask("HEAD", listen.nearby, listen.port, "/", {}) else f"nothing answers at http://{listen}"
    except OSError as error:
        return f"journal {settings.journal_path}: cannot be looked at: {error.strerror}; ask as the bridge's user"
    url = urlsplit(key["url"])
    code = _ask("GET", url.hostname or "", url.port or 80, "/healthz", {"Authorization": f"Bearer {key['token']}"})
    if code == 200:
        return None
    return (
        f"{key['url']}healthz says {code}: a part of the bridge hangs" if code else f"nothing answers at {key['url']}"
    )


def _ask(method: str, host: str, port: int, path: str, headers: Mapping[str, str]) -> int | None:
    """The status code of the answer; None if there is none."""
    with closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as connection:
        try:
            connection.request(method, path, headers=dict(headers))
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
