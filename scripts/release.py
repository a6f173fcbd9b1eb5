"""What `scripts/release` does; run in the environment of the tests."""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import apsw
from packaging.version import Version

ROOT = Path(__file__).parents[1]
#: Home Assistant's stores read the version in main, and install it from PyPI.
CLOSING = """\
look at it; then, the tag first:
  git push origin {tag}
and when the workflow `release` has uploaded it to PyPI, main:
  git push origin main
to take it back, while nothing is pushed:
  git tag -d {tag} && git reset --hard HEAD~
"""
CHANGES = re.compile(r"^## \[Unreleased\]\n(.*?)(?=^## \[|\Z)", re.MULTILINE | re.DOTALL)


def run(root: Path, *command: str, **environment: str) -> str:
    ended = subprocess.run(
        command, cwd=root, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return ended.stdout.strip()


def look(root: Path, version: str) -> None:
    """End with what is to be done first, if this cannot be released."""
    old = current(root)
    tags = run(root, "git", "tag", "--list").split()
    problems = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        problems.append(f"{version} is no version; write e.g. 0.2.0")
    elif Version(version) < Version(old) or (version == old and f"v{old}" in tags):
        problems.append(f"{version} is not newer than {old}")
    if f"v{version}" in tags:
        problems.append(f"there is a tag v{version} already")
    if run(root, "git", "status", "--porcelain"):
        problems.append("there are changes that are not committed")
    if not notes(root).strip():
        problems.append("nothing stands below [Unreleased] in CHANGELOG.md")
    if unkept := [what for what, is_kept in kept(root / "tests/upgrades").items() if not is_kept]:
        problems.append(
            f"no {' and no '.join(unkept)} is kept for later versions to upgrade: "
            f"python -m tests.upgrades.make {version}"
        )
    if problems:
        sys.exit("\n".join(f"not released: {one}" for one in problems))


def current(root: Path) -> str:
    found = re.search(r'^__version__ = "(.+)"$', (root / "bridge/__init__.py").read_text(), re.MULTILINE)
    assert found  # noqa: S101
    return found[1]


def notes(root: Path) -> str:
    """What the changelog says of the coming version."""
    found = CHANGES.search((root / "CHANGELOG.md").read_text())
    return found[1] if found else ""


def section(root: Path, version: str) -> str:
    """What the changelog says of a version that is released."""
    text = (root / "CHANGELOG.md").read_text().partition(f"## [{version}] - ")[2]
    return text.partition("\n")[2].partition("\n## [")[0]


def kept(folder: Path) -> dict[str, bool]:
    """What the tests of upgrades need of this version, and whether they have it."""
    sys.path.insert(0, str(ROOT))
    from bridge.journal import sqlite, statements
    from tests.upgrades.make import lacking

    in_files = {schema_of(file) for file in folder.glob("*/journal.db")}
    in_databases = " ".join(file.read_text() for file in folder.glob("*/journal.sql"))
    here, there = len(sqlite.MIGRATIONS), len(statements.MIGRATIONS)
    settings = [json.loads(file.read_text()) for file in folder.glob("*/means.json")]
    return {
        f"journal with schema {here}": here in in_files,
        f"journal of PostgreSQL with schema {there}": f" IS 'whatsapp2mqtt {there}';" in in_databases,
        "settings file with every setting": not all(map(lacking, settings)),
    }


def schema_of(journal: Path) -> int:
    db = apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(db.pragma("user_version"))
    finally:
        db.close()


def write(root: Path, version: str, day: str) -> str:
    """Write the version where it stands, and give the changelog's section its name; that section."""
    text = notes(root)
    for file, pattern, line in (
        ("bridge/__init__.py", r'^__version__ = ".+"$', f'__version__ = "{version}"'),
        ("addon/config.yaml", r'^version: ".+"$', f'version: "{version}"'),
        ("CHANGELOG.md", r"^## \[Unreleased\]$", f"## [Unreleased]\n\n## [{version}] - {day}"),
    ):
        path = root / file
        before = path.read_text()
        after, count = re.subn(pattern, line, before, flags=re.MULTILINE)
        if count != 1:
            sys.exit(f"{file}: has {count} lines like {pattern} instead of one")
        path.write_text(after)
    return text


def build(root: Path, version: str, text: str) -> Path:
    """All that is published, in dist/."""
    dist = root / "dist"
    for old in dist.glob("*"):
        old.unlink()
    # The same sources make the same files: the time in them is that of the last commit.
    moment = run(root, "git", "log", "-1", "--format=%ct")
    command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", "dist", "."]
    run(root, *command, SOURCE_DATE_EPOCH=moment)
    (dist / f"whatsapp2mqtt-{version}.cdx.json").write_text(materials(root, version))
    (dist / "NOTES.md").write_text(text.strip() + "\n")
    files = sorted(one for one in dist.iterdir() if one.name != "SHA256SUMS")
    sums = "".join(f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.name}\n" for one in files)
    (dist / "SHA256SUMS").write_text(sums)
    return dist


def materials(root: Path, version: str) -> str:
    """The bill of materials (CycloneDX): what the bridge runs with, with licences and who needs whom."""
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    bill = json.loads(run(root, *command, "--pyproject", "pyproject.toml", "--of", "JSON", sys.executable))
    locked = set(re.findall(r"^([a-z0-9-]+)==", (root / "requirements.txt").read_text(), re.MULTILINE))
    bill["components"] = [one for one in bill["components"] if one["name"].lower().replace("_", "-") in locked]
    bill["metadata"]["component"]["version"] = version
    known = {one["bom-ref"] for one in (*bill["components"], bill["metadata"]["component"])}
    bill["dependencies"] = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", []) if ref in known]}
        for one in bill["dependencies"]
        if one["ref"] in known
    ]
    return json.dumps(bill, indent=2, sort_keys=True) + "\n"


def release(root: Path, version: str) -> Path:
    text = write(root, version, dt.datetime.now(dt.UTC).date().isoformat())
    run(root, "git", "commit", "--quiet", "--all", "--message", f"Release {version}")
    dist = build(root, version, text)
    run(root, "git", "tag", "--annotate", f"v{version}", "--message", f"whatsapp2mqtt {version}\n\n{text.strip()}")
    return dist


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true", help="Do it in a copy, and keep nothing but what it printed.")
    parser.add_argument(
        "--of-tag", action="store_true", help="Only build dist/ anew, of a release that is checked out."
    )
    given = parser.parse_args(arguments)
    if given.of_tag:
        if (current(ROOT), run(ROOT, "git", "describe", "--tags")) != (given.version, f"v{given.version}"):
            sys.exit(f"what is checked out is not v{given.version}")
        print(listed(build(ROOT, given.version, section(ROOT, given.version))))
        return
    look(ROOT, given.version)
    if not given.dry_run:
        print(listed(release(ROOT, given.version)))
        print(CLOSING.format(tag=f"v{given.version}"), end="")
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        run(ROOT, "git", "clone", "--quiet", str(ROOT), str(copy))
        for name in ("user.name", "user.email"):
            run(copy, "git", "config", name, run(ROOT, "git", "config", name))
        print(listed(release(copy, given.version)))
        print(run(copy, "git", "show", "--no-patch", f"v{given.version}"))
        print("nothing of this was kept")


def listed(dist: Path) -> str:
    return (
        "".join(f"{one.stat().st_size:>9}  {one.name}\n" for one in sorted(dist.iterdir()))
        + (dist / "SHA256SUMS").read_text()
    )


if __name__ == "__main__":
    main()
