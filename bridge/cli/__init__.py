"""The command line. Commands import what they need when they run, so that `--help` and `version` are quick.

common.py    what every command shares
running.py   run, check, healthy, install-service, password, version
trying.py    simulate, tail
letters.py   dead-letters
keeping.py   backup, restore, clean, migrate-settings
"""

from __future__ import annotations

import click

from bridge.cli import keeping, letters, running, trying


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """WhatsApp Business callbacks in by HTTP, MQTT topics out, nothing lost between."""


for _command in (
    running.run,
    running.check,
    trying.simulate,
    trying.tail,
    letters.dead_letters,
    keeping.backup,
    keeping.restore,
    keeping.clean,
    keeping.migrate_settings,
    running.healthy,
    running.install_service,
    running.password,
    running.version,
):
    main.add_command(_command)
