"""Keep what this version leaves on a disk, for later versions to upgrade: `python -m tests.upgrades.make`.

Run once for each release, before its tag: the journal is made by the real bridge from real callbacks. The settings file
beside it is written by hand, as users write theirs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bridge import __version__
from tests.system.support import Bridge

FOLDER = Path(__file__).parent / __version__


def make(journal: Path) -> None:
    """Run the bridge, let it have callbacks of every kind, end it, and copy its journal."""
    with tempfile.TemporaryDirectory() as place:
        bridge = Bridge(Path(place))
        try:
            bridge.start()
            with bridge.listen() as subscriber:
                kinds = ("sent", "delivered", "read", "failed", "button", "cloud-sent", "cloud-button")
                bridge.run("simulate", "--message-id", "wamid.upgrade", *kinds).check_returncode()
                bridge.run("simulate", "--payload", "light_on", "--text", "Light on", "button").check_returncode()
                assert bridge.post(b"this is no callback").status == 200
                subscriber.wait("whatsapp/button/light_on")
            assert bridge.program.end() == 0
            bridge.run("backup", journal).check_returncode()
        finally:
            bridge.__exit__()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    make(FOLDER / "journal.db")
    print(FOLDER / "journal.db", (FOLDER / "journal.db").stat().st_size, "bytes")
