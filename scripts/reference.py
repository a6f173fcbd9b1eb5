"""The pages that follow from the code, or from what was measured, from the templates in scripts/pages.

Settings come from the schema in bridge/config.py. Topics and JSON are made by bridge/topics.py from two callbacks of
tests/payloads; what each topic and key means stands here, and a test holds it against what the code really makes.
`scripts/docs` writes them.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jinja2
import orjson
import yaml

from bridge import topics
from bridge.cli import main as cli
from bridge.config import ENV_PREFIX, Settings, leaves, sections
from bridge.payload import parse
from tests.bench import report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: When the callbacks of the examples were received, in epoch seconds.
RECEIVED = 1_767_225_600.41

#: Topics below the base topic: whether they are retained, and what they carry.
TOPICS: dict[str, tuple[bool, str]] = {
    "<msg_id>/status": (True, "the state of a message: its highest-ranking status"),
    "button/<payload>": (True, "the latest click on this button"),
    "event/status/<status>": (False, "every status update, once"),
    "event/button/<payload>": (False, "every click, once, unless it was too old; **for automations**"),
    "last/status": (True, "the latest status of all, for dashboards"),
    "last/button": (True, "the latest click of all, for dashboards"),
    topics.BRIDGE_STATE: (True, "`online`, or `offline` (also as last will)"),
    topics.BRIDGE_INFO: (True, "JSON: version, settings, broker, protocol, since when it is connected"),
    topics.BRIDGE_HEALTH: (True, "JSON, each minute and when something essential changes: see [below](#health)"),
    topics.BRIDGE_CHECKPOINT: (
        True,
        "JSON, for the bridge itself: `seq`, up to which place all was published; `journal`, of which journal",
    ),
    f"{topics.BRIDGE_CHECKPOINT}/<partition>": (
        True,
        "the same, where there are [several bridges](several-bridges.md)",
    ),
    f"{topics.BRIDGE_REPLICA}/<name>/state": (True, "`online` or `offline`: one of several bridges"),
    f"{topics.BRIDGE_REPLICA}/<name>/info": (
        True,
        "JSON: as `bridge/info`, of one of several bridges, and its partitions",
    ),
    f"{topics.BRIDGE_REQUEST}/<what>": (False, "JSON, **to** the bridge: see [requests](requests.md)"),
    f"{topics.BRIDGE_RESPONSE}/<what>": (False, "JSON: the answer to such a request"),
    topics.BRIDGE_DOCTOR: (
        True,
        (
            "for the command `doctor`, which takes it away again at once; it also publishes empty messages where no "
            f"update ever stands, to see whether it may: {', '.join(f'`{topic}`' for topic, _ in topics.PROBES)}"
        ),
    ),
}

STATUS_KEYS = {
    "message_id": "verbatim",
    "status": "in lower case: sent, delivered, read, played, failed, deleted, or whatever WhatsApp adds",
    "timestamp": "WhatsApp's, epoch seconds; null where it could not be read",
    "received_at": "when the bridge received it, ISO 8601 in UTC",
    "recipient_id": "phone number, group or user",
    "conversation": "as it came",
    "errors": "as they came",
    "business_phone": "the business' number",
    "event_id": "the same whenever the same update is sent again: tells a duplicate",
}

CLICK_KEYS = {
    "payload": "what the button means to you; where the callback brings none, the text stands in for it",
    "text": "what stands on the button",
    "event_type": "the payload once more, under the name that Home Assistant's event entity looks for",
    "message_id": "of the click",
    "from": "who clicked: phone number or user id",
    "name": "who clicked: the profile's name, as that person chose it",
    "timestamp": "WhatsApp's, epoch seconds; null where it could not be read",
    "received_at": "when the bridge received it, ISO 8601 in UTC",
    "context": "the message that was answered, as it came",
    "tag_name": "the vendor's",
    "template": "`id`, `name` and `parameters`, as far as `wa_ext` tells them",
    "wa_ext": "what the vendor appended, verbatim",
    "business_phone": "the business' number",
    "event_id": "the same whenever the same update is sent again: tells a duplicate",
    "test": "true, and only there when somebody clicked it on the bridge's own page to try automations",
    "late": "true, and only there when the click was too old to fire",
}

#: What `bridge/health` says.
HEALTH_KEYS = {
    "ok": "whether all is well: connected, and no alarms",
    "connected": "whether updates can flow to the broker",
    "backlog": "updates that wait for the broker",
    "oldest_age": "seconds that the oldest of them waits",
    "dead_letters": "how many there are",
    "retained_topics": "how many stand on the broker",
    "messages": "statuses by name, `today` and in `total`",
    "last_failure": "the last status that said `failed`, or null",
    "journal_bytes": "the journal's size",
    "wal_bytes": "its write-ahead log's size",
    "alarms": "what is wrong, in words",
    "replicas": "where there are several bridges, the names of those that are there",
    "clock_trusted": "whether the timestamps of clicks are believed",
    "started_at": "when the bridge started, ISO 8601 in UTC",
    "uptime": "seconds since then",
    "memory_bytes": "the most that the main process ever used",
    "at": "when this was written, ISO 8601 in UTC",
}


def pages() -> dict[str, str]:
    """The pages, by their names in docs/."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "scripts" / "pages"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (Markdown, and all of it is ours)
    )
    templates.filters["cell"] = lambda text: text.replace("|", "\\|").replace("<", "&lt;")
    templates.filters["pretty"] = lambda text: json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    measured = json.loads((DOCS / "performance.json").read_text(encoding="utf-8"))
    return {
        "performance.md": templates.get_template("performance.md").render(report.page(measured)),
        "performance.svg": report.drawing(measured),
        "settings.md": templates.get_template("settings.md").render(env_prefix=ENV_PREFIX, sections=_settings()),
        "commands.md": templates.get_template("commands.md").render(env_prefix=ENV_PREFIX, commands=list(_commands())),
        "topics.md": templates.get_template("topics.md").render(
            topics=TOPICS,
            level=topics.level,
            message_level=topics.message_level,
            level_limit=topics.LEVEL_LIMIT,
            level_kept=topics.LEVEL_KEPT,
            reserved=[f"`{word}`" for word in sorted(topics.RESERVED_MESSAGE_IDS)],
            status=example("spec-status-failed"),
            status_keys=STATUS_KEYS,
            click=example("spec-click"),
            click_keys=CLICK_KEYS,
            health=topics.BRIDGE_HEALTH,
            health_keys=HEALTH_KEYS,
        ),
    }


def example(name: str) -> topics.Entry:
    """What becomes of the first update in a callback of tests/payloads."""
    case = json.loads((ROOT / "tests" / "payloads" / f"{name}.json").read_text(encoding="utf-8"))
    return topics.entry(parse(orjson.dumps(case["body"])).updates[0], RECEIVED)


def _settings() -> list[dict[str, Any]]:
    """The sections with their settings, in order."""
    about = dict(sections())
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for key, metadata in leaves(Settings):
        section = found.setdefault(
            key[:-1], {"name": ".".join(key[:-1]), "depth": len(key) - 1, "about": about[key[:-1]], "settings": []}
        )
        default = yaml.safe_dump(metadata["default"], default_flow_style=True).removesuffix("...\n").strip()
        section["settings"].append(
            {
                "name": ".".join(key),
                "default": default,
                "about": metadata["about"],
                "is_secret": metadata["show"] is not None,
            }
        )
    return list(found.values())


def _commands(
    group: click.Group = cli, context: click.Context | None = None, above: str = ""
) -> Iterator[dict[str, Any]]:
    """Each command with its words and options, as click knows them; groups before what is in them."""
    context = context or click.Context(group, info_name="whatsapp2mqtt")
    for name, command in group.commands.items():
        own = click.Context(command, info_name=name, parent=context)
        full = f"{above}{name}"
        yield {
            "name": full,
            "usage": " ".join(command.get_usage(own).removeprefix("Usage: ").split()),
            "about": inspect.cleandoc(command.help or ""),
            "options": [
                {"names": ", ".join(record[0].split(", ")), "about": record[1]}
                for option in command.params
                if isinstance(option, click.Option) and (record := option.get_help_record(own)) is not None
            ],
        }
        if isinstance(command, click.Group):
            yield from _commands(command, own, f"{full} ")


def main() -> int:
    """Write those that differ."""
    for name, text in pages().items():
        file = DOCS / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"docs/{name} is written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
