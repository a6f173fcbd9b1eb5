"""What `whatsapp2mqtt check` prints: the settings in force, where each was set, secrets hidden."""

from __future__ import annotations

import sys

import yaml

from bridge.config import Loaded, Settings, leaves, sections


def report(loaded: Loaded) -> str:
    """The settings as YAML, a comment behind each that is not the default."""
    lines: list[str] = []
    shown: set[tuple[str, ...]] = set()
    about = dict(sections())
    for key, metadata in leaves(Settings):
        for depth in range(1, len(key)):
            if key[:depth] in about and key[:depth] not in shown:
                shown.add(key[:depth])
                lines.append(f"{'  ' * (depth - 1)}{key[depth - 1]}:")
        name = ".".join(key)
        written = loaded.written[name]
        if metadata["show"] is not None:
            written = metadata["show"](written)
        origin = f"  # {loaded.origins[name]}" if name in loaded.origins else ""
        lines.append(f"{'  ' * (len(key) - 1)}{key[-1]}: {_scalar(written)}{origin}")
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    """One line of YAML, whatever it holds: the origin stands behind it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    text = text.removesuffix("...\n").rstrip("\n")
    if text.isprintable():
        return text
    escaped: str = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, default_style='"')
    return escaped.rstrip("\n")
