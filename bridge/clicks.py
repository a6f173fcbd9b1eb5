"""Whose clicks fire, and which: the lists in `buttons` of the settings. Pure.

Asked while a callback is read, before numbers are hidden: only then a number can be compared. A click that is refused
goes to the dead letters, with people by their hash where numbers are hidden, so that it is known again when the list
has changed and it is tried once more.
"""

from __future__ import annotations

from bridge.config import Buttons
from bridge.model import ButtonClick
from bridge.privacy import Veil, canonical


class Allowed:
    """The lists, ready to be asked.

    Args:
        buttons: The settings.
        veil: For dead letters that are tried again, and for nothing else: in those, people may stand by their hash.
    """

    def __init__(self, buttons: Buttons, veil: Veil | None = None) -> None:
        self._people = frozenset(map(canonical, buttons.allow_from))
        if veil is not None:
            self._people |= frozenset(map(veil.hashed, buttons.allow_from))
        self._templates = frozenset(buttons.templates)
        self._payloads = frozenset(buttons.payloads)

    def refusal(self, click: ButtonClick, user: str | None) -> str | None:
        """Why a click does not fire, in words for the user; None if it does.

        Args:
            click: As it came.
            user: The sender's user id, which stands beside the number or in its place.
        """
        if self._people and self._people.isdisjoint(canonical(one) for one in (click.sender, user) if one):
            return "who clicked is not in buttons.allow_from"
        if self._templates and self._templates.isdisjoint(map(str, _names(click))):
            return "the button's template is not in buttons.templates"
        if self._payloads and click.payload not in self._payloads:
            return "the button's payload is not in buttons.payloads"
        return None


def _names(click: ButtonClick) -> list[object]:
    """How the template is called: its name and its id, as far as the callback tells them."""
    return [click.template[key] for key in ("name", "id") if key in click.template] if click.template else []
