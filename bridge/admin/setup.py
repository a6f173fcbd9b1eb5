"""What is still to be done, and where the webhook is: the page's checklist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bridge.admin.status import Lamp, Light, Sources, Status
from bridge.config import Auth, Settings
from bridge.strength import weak_secrets

HIDDEN = "••••••••"


@dataclass(frozen=True, slots=True)
class Address:
    """One address at which the webhook takes callbacks.

    Attributes:
        is_complete: Whether it can be pasted as it is.
        is_hidden: Whether a secret in it is not shown.
    """

    url: str
    is_complete: bool
    is_hidden: bool


def addresses(settings: Settings, *, plain: bool) -> list[Address]:
    """What to paste at the vendor: one for each secret that the path may end in.

    Args:
        settings: In force.
        plain: Whether secrets are shown.
    """
    webhook = settings.webhook
    base = f"{webhook.public_url or 'https://<your host>'}{webhook.path}"
    tokens = webhook.auth.path_token
    if not tokens:
        return [Address(base, webhook.public_url is not None, is_hidden=False)]
    return [
        Address(f"{base}/{token if plain else HIDDEN}", webhook.public_url is not None and plain, is_hidden=not plain)
        for token in tokens
    ]


def checklist(sources: Sources, status: Status) -> list[Lamp]:
    """What has to be right, each with its light and words."""
    return list(_items(sources, status))


def _items(sources: Sources, status: Status) -> Iterator[Lamp]:
    settings = sources.settings
    webhook, journal, broker = status.lamps
    yield _authentication(settings)
    if settings.webhook.public_url:
        yield Lamp("Public address", Light.OK, f"the internet finds the webhook at {settings.webhook.public_url}")
    else:
        yield Lamp(
            "Public address",
            Light.WAITING,
            "set webhook.public_url to where your tunnel or proxy is found, and this page shows the address to paste",
        )
    if status.has_callbacks:
        yield Lamp("Callbacks", webhook.light, "they come, and are taken" if webhook.light is Light.OK else webhook.why)
    else:
        yield Lamp("Callbacks", webhook.light, webhook.why)
    yield Lamp("Broker reached", broker.light, broker.why)
    yield _home_assistant(sources)
    yield Lamp("Journal", journal.light, journal.why)
    if status.health.get("clock_trusted", True):
        yield Lamp("Clock", Light.OK, "it is believed: clicks are fired or recorded as late by it")
    else:
        yield Lamp(
            "Clock",
            Light.WAITING,
            "it was set, or is before this program was made; the next callback that says now proves it right",
        )
    yield _page(settings)


def methods(auth: Auth) -> list[str]:
    """In what ways the sender shows who it is."""
    return [
        words
        for is_set, words in (
            (auth.path_token, "a secret in the address"),
            (auth.header_token, f"the header {auth.header_name}"),
            (auth.basic, "HTTP Basic"),
            (auth.meta_app_secret, "Meta's signature"),
            (auth.vendor_secret, "the vendor's signature"),
            (auth.addresses, "the sender's address"),
        )
        if is_set
    ]


def _authentication(settings: Settings) -> Lamp:
    name = "Authentication"
    auth = settings.webhook.auth
    if weak := next(weak_secrets(auth), None):
        return Lamp(name, Light.WAITING, str(weak))
    if auth.is_set:
        joint = " or " if auth.require == "any" else " and "
        return Lamp(name, Light.OK, f"who posts is known by {joint.join(methods(auth))}")
    if not settings.webhook.listen.is_loopback:
        return Lamp(name, Light.TROUBLE, "anyone may post, and so open your gate; set webhook.auth.path_token")
    return Lamp(
        name,
        Light.WAITING,
        "anyone on this machine may post, and whoever a tunnel or proxy lets through; set webhook.auth.path_token "
        "before you open one",
    )


def _home_assistant(sources: Sources) -> Lamp:
    name = "Home Assistant"
    settings, observer = sources.settings.homeassistant, sources.publisher.observer
    if not settings.discovery:
        return Lamp(name, Light.OK, "not told anything, as homeassistant.discovery is false")
    if observer.refused["discovery"]:
        return Lamp(
            name,
            Light.TROUBLE,
            f"the broker does not take its discovery; allow the bridge to publish to {settings.prefix}/#",
        )
    if observer.home_assistant_at is not None:
        return Lamp(name, Light.OK, "it has said that it is there, and was told everything")
    if observer.acknowledged["discovery"]:
        return Lamp(
            name,
            Light.WAITING,
            f"everything it needs stands on the broker below {settings.prefix}/; it has not said that it is there "
            "since the bridge started. Look for the device WhatsApp in its MQTT integration",
        )
    return Lamp(name, Light.WAITING, "it is told once the broker is reached")


def _page(settings: Settings) -> Lamp:
    admin = settings.admin
    if admin.password:
        return Lamp("This page", Light.OK, "asks for a password")
    if admin.trusted_proxies:
        return Lamp("This page", Light.OK, f"is shown to {', '.join(admin.trusted_proxies)} alone, who asked already")
    return Lamp("This page", Light.OK, "is shown to this machine alone")
