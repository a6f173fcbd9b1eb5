"""What systemd gives the service beside its settings file: the variables and credentials of `systemctl edit`.

So `whatsapp2mqtt-service` works with the settings that the service has at its next start, secrets among them, whether
it runs or not: credentials are read where they come from, as the settings file is.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from bridge.config import ENV_PREFIX

#: What `%d` is in the unit: credentials are there while the service runs (systemd.exec(5), CREDENTIALS).
CREDENTIALS = Path("/run/credentials/whatsapp2mqtt.service")
#: `systemctl show` does not print credentials. The names are those of org.freedesktop.systemd1(5).
ASK = (
    *("busctl", "get-property", "--json=short", "org.freedesktop.systemd1"),
    *("/org/freedesktop/systemd1/unit/whatsapp2mqtt_2eservice", "org.freedesktop.systemd1.Service"),
    *("Environment", "LoadCredential", "LoadCredentialEncrypted"),
)

#: Said where it is done without.
UNKNOWN = "what `systemctl edit` gives the service is not known here, so the settings file alone counts"

Run = Callable[[Sequence[str]], bytes]


class DropInError(Exception):
    """What the service is given cannot be found out; the message says why."""


def run(command: Sequence[str]) -> bytes:
    """What a command prints.

    Raises:
        DropInError: It cannot be run, or fails.
    """
    try:
        ended = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  (our own words)
    except OSError as error:
        raise DropInError(f"{command[0]}: {error.strerror}") from error
    if ended.returncode:
        raise DropInError(f"{command[0]}: {ended.stderr.decode(errors='replace').strip() or ended.returncode}")
    return ended.stdout


def variables(run: Run = run) -> dict[str, str]:
    """The bridge's variables that the service is given; what is a credential there is a file to be read here.

    Raises:
        DropInError: systemd cannot be asked, or a credential cannot be decrypted.
    """
    given, plain, encrypted = (json.loads(line)["data"] for line in run(ASK).splitlines())
    found = dict(one.split("=", 1) for one in given if one.startswith(ENV_PREFIX))
    for name, value in found.items():
        if Path(value).parent != CREDENTIALS:
            continue
        credential = Path(value).name
        if source := dict(plain).get(credential):
            found[name] = source
        elif source := dict(encrypted).get(credential):
            found[name] = _decrypted(credential, source, run)
    return found


def _decrypted(credential: str, source: str, run: Run) -> str:
    """A file in memory alone, which ends with this process."""
    content = run(("systemd-creds", "decrypt", f"--name={credential}", source, "-"))
    descriptor = os.memfd_create(credential)
    os.write(descriptor, content)
    return f"/proc/{os.getpid()}/fd/{descriptor}"
