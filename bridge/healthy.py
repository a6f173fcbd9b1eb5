"""Whether a bridge that runs on this machine is well, for whoever watches it: Docker, Kubernetes, monit."""

from __future__ import annotations

import http.client
from contextlib import closing, suppress

from bridge.config import Address, Settings
from bridge.running import PATIENCE, NotRunningError, ask


def unwell(settings: Settings) -> str | None:
    """Why the bridge with these settings is not well, in words for the user; None if it is.

    Its page says so. Where the page is off, the webhook must answer.
    """
    with suppress(PermissionError):  # of which `ask` tells
        if not settings.journal_path.with_suffix(".admin").exists():
            listen = settings.webhook.listen
            return None if _answers(listen) else f"nothing answers at http://{listen}"
    try:
        code, _ = ask(settings, "healthz")
    except NotRunningError as error:
        return str(error)
    return None if code == 200 else f"/healthz says {code}: a part of the bridge hangs"


def _answers(listen: Address) -> bool:
    with closing(http.client.HTTPConnection(listen.nearby, listen.port, timeout=PATIENCE)) as connection:
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        return True
