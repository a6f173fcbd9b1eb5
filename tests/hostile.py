"""What an attacker writes into callbacks: texts by what they are after, and callbacks that have one in every place.

Tests take it to everything that a callback's text reaches: topics, JSON, logs, terminals, the page, Home Assistant's
discovery, metrics, files, the command line.
"""

from __future__ import annotations

from typing import Any

#: Each text by what it is after; none is longer than a topic level that is not cut, but for the long ones.
TEXTS: dict[str, str] = {
    # the page
    "img": "<img src=x onerror=alert(document.domain)>",
    "script": "</script><script>alert(1)</script>",
    "attribute": "\" autofocus onfocus=alert(1) x=\"' onmouseover='alert(1)",
    "svg": "<svg/onload=alert`1`>",
    "comment": "--><style>*{background:url(//example.org/x)}</style><!--",
    "javascript-link": "javascript:alert(1)",
    "entity": "&lt;img src=x onerror=alert(1)&gt;&#x0;",
    "json-in-html": '{"a":"</script><img src=x onerror=alert(1)>"}\u2028\u2029',
    # templates: Jinja of the page and of Home Assistant, and others
    "jinja-expression": "{{ 7*7 }}",
    "jinja-attack": "{{ self.__init__.__globals__ }}{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "jinja-statement": "{% set x = states('lock.door') %}{{ x }}",
    "jinja-open": "{{ '{% raw %}' }}{# never closed",
    "jinja-close": "{% endraw %}}}",
    "format": "{0.__class__}%(asctime)s%n%s$(id)`id`${IFS}",
    # topics
    "wildcard-all": "#",
    "wildcard-level": "+",
    "wildcards": "a/+/b/#",
    "levels": "button/open_gate",
    "leading-slash": "/bridge/state",
    "system-topic": "$SYS/broker/version",
    "percent": "%2F%23%00%62utton~",
    "our-word-button": "button",
    "our-word-bridge": "bridge",
    "our-word-event": "event",
    "our-word-last": "last",
    "our-word-status": "status",
    "space": " ",
    # files and processes
    "traversal": "../../../../etc/passwd",
    "traversal-encoded": "..%2f..%2f%2e%2e/journal.db\\..\\..\\windows",
    "dots": "..",
    "option": "--config=/etc/passwd",
    "shell": "; touch /tmp/pwned | cat $(id) `id` &",
    # lines and terminals
    "newline": 'first\n{"event":"forged","level":"info"}\r\nthird',
    "carriage-return": "hidden\rshown",
    "null": "before\x00after",
    "escape-colour": "\x1b[31mred\x1b[0m",
    "escape-title": "\x1b]0;owned\x07",
    "escape-clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "escape-clear": "\x1b[2J\x1b[H\x1bc",
    "escape-8-bit": "\x9b31m\x9d0;owned\x9c",
    "backspace": "harmless\x08\x08\x08\x08\x08\x08\x08\x08evil",
    "delete": "\x7f\x80\x85",
    "line-separators": "a\u2028b\u2029c\x0bd\x0ce",
    "bidi": "\u202egnp.exe\u202c \u2066abc\u2069 \u200f",
    "invisible": "open\u200b_\u2060gate\ufeff\u00ad",
    "tags": "\U000e0001\U000e0041\U000e007f",
    "combining": "Z" + "\u0351\u036b\u0343" * 30,
    "not-a-character": "\uffff\ufdd0\U0010ffff",
    "private-use": "\ue000\U000f0000",
    "emoji-joined": "👩\u200d👩\u200d👧\u200d👦",
    "homograph": "оpen_gаte",  # noqa: RUF001  (that is the attack)
    # metrics: a label that ends, and a line of its own
    "label": 'x",evil="1"} 1\nwhatsapp2mqtt_alarms 99\n# HELP x \\',
    # databases
    "sql": "'; DROP TABLE updates; --",
    "sql-glob": "%_*?[a-z]\\",
    # JSON: words that mean something elsewhere
    "prototype": "__proto__",
    "json": '","status":"read","x":"',
    "number": "1e999",
    "not-a-number": "NaN",
    "null-word": "null",
    # Home Assistant
    "entity-id": "lock.front_door",
    "event-type": "homeassistant_stop",
    "none": "None",
    "unavailable": "unavailable",
    # without end
    "long": "A" * 100_000,
    "long-percent": "é/" * 20_000,
    "long-braces": "{{" * 10_000,
    "long-word-of-digits": "1" * 50_000,
    "long-line-ends": "\n" * 20_000,
}

#: Keys that mean something to Home Assistant, to databases or to JavaScript, with values that would hurt there.
KEYS: dict[str, Any] = {
    "event_type": "homeassistant_stop",
    "event_types": ["open_gate", "{{ 7*7 }}"],
    "entity_id": "lock.front_door",
    "icon": "javascript:alert(1)",
    "entity_picture": "//example.org/x",
    "device_class": "lock",
    "friendly_name": "<b>Door</b>",
    "restored": True,
    "state": "unlocked",
    "event_id": "0" * 32,
    "received_at": "1970-01-01T00:00:00Z",
    "late": False,
    "retain": False,
    "topic": "whatsapp/bridge/state",
    "__proto__": {"isAdmin": True},
    "constructor": {"prototype": {}},
    "toString": "x",
    "": "no name",
    "a\x00b": "\x00",
    "{{ 7*7 }}": "{% raw %}",
    "\u202eevil": "\x1b[2J",
}

#: What JSON can say and UTF-8 cannot: half of a surrogate pair, as it stands in a body.
HALF_PAIRS = (r"\ud800", r"\udfff", r"\udc00\ud800", r"x\ud83dy")

#: A timestamp of 2022.
WHEN = 1_660_019_986


def click(text: str, number: int = 0) -> dict[str, Any]:
    """A callback with one click that has the text in every place where a text may stand.

    Args:
        text: One of `TEXTS`.
        number: Tells clicks on the same button apart.
    """
    return {
        "messages": [
            {
                **KEYS,
                "id": f"{text}:{number}" if number else text,
                "from": text,
                "timestamp": str(WHEN),
                "type": "button",
                "button": {**KEYS, "payload": text, "text": text},
                "context": {**KEYS, "id": text, "from": text, text: text},
                "tag_name": text,
                "wa_ext": {
                    **KEYS,
                    "templateId": text,
                    "templateName": text,
                    "components": [{"parameters": [{"text": text}, {text: text}]}],
                },
            }
        ],
        "contacts": [{"wa_id": text, "profile": {**KEYS, "name": text}}],
        "business_phone": text,
        **KEYS,
    }


def reply(text: str) -> dict[str, Any]:
    """A callback with a click on a button of a session message, with the text in every place."""
    return {
        "entry": [
            {
                "id": text,
                "changes": [
                    {
                        "field": "messages",
                        "value": {
                            **KEYS,
                            "metadata": {"display_phone_number": text, "phone_number_id": text},
                            "contacts": [{"wa_id": text, "profile": {"name": text}}],
                            "messages": [
                                {
                                    "id": text,
                                    "from": text,
                                    "timestamp": text,
                                    "type": "interactive",
                                    "interactive": {
                                        "type": "button_reply",
                                        "button_reply": {"id": text, "title": text},
                                    },
                                }
                            ],
                        },
                    }
                ],
            }
        ]
    }


def status(text: str, word: str | None = None) -> dict[str, Any]:
    """A callback with one status that has the text in every place, also as the status unless there is another word."""
    return {
        "statuses": [
            {
                **KEYS,
                "id": text,
                "status": text if word is None else word,
                "timestamp": str(WHEN),
                "recipient_id": text,
                "conversation": {**KEYS, "id": text, "origin": {"type": text}, text: text},
                "errors": [{**KEYS, "code": text, "title": text, "message": text, "error_data": {"details": text}}],
            }
        ],
        "metadata": {"display_phone_number": text, "phone_number_id": text},
    }


def callbacks(text: str) -> list[dict[str, Any]]:
    """All callbacks that have the text in every place."""
    return [click(text), reply(text), status(text), status(text, "failed")]
