"""Whether a bridge that runs on this machine is well, for whoever watches it: Docker, Kubernetes, monit."""

from __future__ import annotations

from contextlib import suppress

from bridge.config import Settings
from bridge.running import NotRunningError, answers, ask


def unwell(settings: Settings) -> str | None:
    """Why the bridge with these settings is not well, in words for the user; None if it is.

    Its page says so. Where the page is off, the webhook must answer.
    """
    with suppress(PermissionError):  # of which `ask` tells
        if not settings.journal_path.with_suffix(".admin").exists():
            listen = settings.webhook.listen
            return None if answers(listen) else f"nothing answers at http://{listen}"
    try:
        code, _ = ask(settings, "healthz")
    except NotRunningError as error:
        return str(error)
    return None if code == 200 else f"/healthz says {code}: a part of the bridge hangs"
