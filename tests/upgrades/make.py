"""Keep what a version leaves on a disk, for later ones to upgrade: `python -m tests.upgrades.make 0.2.0`.

Run for each release with a schema of its own, before its tag: the journal is made by the real bridge from real
callbacks. The settings file beside it, `config.yaml`, is written by hand before, as users write theirs; what it means
to this version is kept, too.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path

from bridge import __version__
from bridge.config import Settings, leaves, load
from tests.system.support import Bridge

FOLDER = Path(__file__).parent / (sys.argv[1:] or [__version__])[0]


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


def means(file: Path) -> dict[str, str]:
    """Every setting that a file names, as this version understands it."""
    loaded = load(file, environ={})
    return {
        name: str(functools.reduce(getattr, name.split("."), loaded.settings))
        for name in map(".".join, (key for key, _ in leaves(Settings)))
        if name in loaded.origins
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    meaning = json.dumps(means(FOLDER / "config.yaml"), indent=2, sort_keys=True)
    (FOLDER / "means.json").write_text(meaning + "\n")
    make(FOLDER / "journal.db")
    print(FOLDER / "journal.db", (FOLDER / "journal.db").stat().st_size, "bytes")
