"""config.example.yaml is what bridge/config.py says; `python tests/unit/test_example.py` prints what it must be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bridge.config import ENV_PREFIX, Settings, leaves, load, sections

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"

HEAD = f"""\
# Every setting of whatsapp2mqtt with its default. The bridge runs without any file: copy what you change.
#
# Start with it: whatsapp2mqtt run --config FILE; look at what is in force: whatsapp2mqtt check --config FILE
# Each setting can also be an environment variable, e.g. {ENV_PREFIX}MQTT__URL for mqtt.url. For a secret the variable
# may name a file that holds it: {ENV_PREFIX}MQTT__PASSWORD_FILE. The environment has the last word.
# Durations are written 30s, 5m, 1h30m, 7d; sizes 500kB, 3MiB. Who may post has lists of secrets, so that one can be
# changed without a gap: add the new one, change the sender, remove the old one.
"""


def example() -> str:
    """The text that config.example.yaml must have."""
    about = dict(sections())
    shown: set[tuple[str, ...]] = set()
    lines = [HEAD]
    for key, metadata in leaves(Settings):
        for depth in range(1, len(key)):
            section, indent = key[:depth], "  " * (depth - 1)
            if section not in shown:
                shown.add(section)
                gap = [""] if depth == 1 and len(shown) > 1 else []
                lines += [*gap, f"{indent}# {about[section]}", f"{indent}{section[-1]}:"]
        indent = "  " * (len(key) - 1)
        default = yaml.safe_dump(metadata["default"], default_flow_style=True).removesuffix("...\n").strip()
        lines += [f"{indent}# {metadata['about']}", f"{indent}{key[-1]}: {default}"]
    return "\n".join(lines) + "\n"


def test_the_example_is_what_the_settings_say() -> None:
    """Otherwise the user reads about settings that are not there, or never hears of those that are."""
    assert EXAMPLE.read_text() == example(), f"write it anew: python {Path(__file__).name} > {EXAMPLE.name}"


def test_the_example_can_be_used_as_it_is() -> None:
    """Otherwise whoever copies it starts with an error message."""
    assert load(EXAMPLE, environ={}).settings == load(None, environ={}).settings


def test_the_example_has_every_setting_once_and_no_other() -> None:
    """Otherwise a setting can only be found in the code; a second one would be refused by `load`."""
    loaded = load(EXAMPLE, environ={})
    in_file = {tuple(name.split(".")) for name in loaded.origins}
    assert in_file == {key for key, _ in leaves(Settings)} | {key for key, _ in sections()}


@pytest.mark.parametrize("key", [key for key, _ in leaves(Settings)], ids=".".join)
def test_the_sentence_about_each_setting_stands_right_above_it(key: tuple[str, ...]) -> None:
    """Otherwise the user sees a name and a value, and not what it is for."""
    about = dict(leaves(Settings))[key]["about"]
    assert re.search(rf"^ *# {re.escape(about)}\n *{re.escape(key[-1])}:", EXAMPLE.read_text(), re.MULTILINE)


def test_no_line_is_too_long_to_read() -> None:
    """Otherwise the file has to be scrolled sideways in a terminal."""
    assert max(map(len, EXAMPLE.read_text().splitlines())) <= 120


if __name__ == "__main__":
    print(example(), end="")
