"""The lock files: complete, with hashes, and without a word about where they were made."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.txt", "requirements-build.txt", "requirements-test.txt", "requirements-fuzz.txt"]


def locked(name: str) -> dict[str, str]:
    """What a lock file pins: names to versions."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    assert len(dict(found)) == len(found)
    return dict(found)


def wanted(name: str) -> set[str]:
    """The names of what pyproject.toml asks for in a lock file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    extras = project["project"]["optional-dependencies"]
    bridge = [*project["project"]["dependencies"], *extras["embedded"], *extras["postgresql"]]
    asked = {
        "requirements.txt": bridge,
        "requirements-build.txt": groups["install"],
        "requirements-test.txt": [*bridge, *groups["install"], *groups["test"]],
        "requirements-fuzz.txt": groups["fuzz"],
    }
    return {re.split(r"[^A-Za-z0-9-]", one)[0].lower() for one in asked[name]}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_pins_all_that_is_asked_for(name: str) -> None:
    """A dependency that was added without `scripts/lock` is missed on a new machine only."""
    assert wanted(name) <= set(locked(name))


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_its_hashes(name: str) -> None:
    """pip refuses the whole file if one hash is missing; without hashes it takes what it is given."""
    for pin in re.split(r"\n(?=[a-z])", (ROOT / name).read_text())[1:]:
        assert "--hash=sha256:" in pin, pin


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_names_no_address_and_no_folder(name: str) -> None:
    """It would install on the machine that made it, and nowhere else."""
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"(^|\s)--(index-url|extra-index-url|find-links|trusted-host)", text)


def test_what_tests_run_with_is_what_users_run_with() -> None:
    """Tests would prove something about other versions than those that are installed."""
    users, build, tests, _ = (locked(name) for name in LOCKS)
    assert users.items() <= tests.items()
    assert build.items() <= tests.items()
