"""A release, made in a copy of this folder: `scripts/release`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge import __version__
from tests.system.support import clean_environment

ROOT = Path(__file__).parents[2]
NOT_CLONED = shutil.ignore_patterns(
    ".git", ".venv", ".*cache", ".hypothesis", "__pycache__", "dist", ".coverage*", ".[bis]*"
)
NEXT = "9.9.9"


def git(root: Path, *command: str) -> str:
    name = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *name, *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def copied(folder: Path) -> Path:
    """This folder as a repository of its own, with something to tell in the changelog."""
    root = Path(shutil.copytree(ROOT, folder / "copy", ignore=NOT_CLONED, symlinks=True))
    changelog = root / "CHANGELOG.md"
    before = changelog.read_text().partition("## [Unreleased]")[0]
    changelog.write_text(
        f"{before}## [Unreleased]\n\n### Added\n\n- A door for cats.\n\n## [0.0.1] - 2020-01-01\n\n- Old.\n"
    )
    git(root, "init", "--quiet", "--initial-branch=main")
    for name in ("user.name", "user.email"):
        git(root, "config", name, "somebody@example.org")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "All of it")
    return root


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Before a release."""
    return copied(tmp_path)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After it."""
    root = copied(tmp_path_factory.mktemp("released"))
    made = release(root, NEXT)
    assert made.returncode == 0, made.stderr
    return root


def release(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "scripts" / "release.py", *arguments]
    environment = clean_environment(root.parent)
    return subprocess.run(
        list(map(str, command)), cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_a_release_is_a_commit_a_tag_and_files_that_belong_together(released: Path) -> None:
    """Whoever installs it gets what the tag says, and can check it."""
    copy = released
    assert git(copy, "tag", "--list") == f"v{NEXT}"
    assert git(copy, "status", "--porcelain") == ""
    assert "- A door for cats." in git(copy, "cat-file", "tag", f"v{NEXT}")
    changelog = (copy / "CHANGELOG.md").read_text()
    assert re.search(rf"## \[Unreleased\]\n\n## \[{NEXT}\] - \d{{4}}-\d\d-\d\d\n\n### Added\n\n- A door", changelog)
    assert f'version: "{NEXT}"' in (copy / "addon/config.yaml").read_text()
    dist = copy / "dist"
    names = {one.name for one in dist.iterdir()}
    assert names == {
        *(f"whatsapp2mqtt-{NEXT}{end}" for end in ("-py3-none-any.whl", ".tar.gz", ".cdx.json")),
        *("NOTES.md", "SHA256SUMS"),
    }
    for line in (dist / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest
        names.discard(name)
    assert names == {"SHA256SUMS"}
    assert (dist / "NOTES.md").read_text() == "### Added\n\n- A door for cats.\n"
    with zipfile.ZipFile(dist / f"whatsapp2mqtt-{NEXT}-py3-none-any.whl") as wheel:
        assert f'__version__ = "{NEXT}"'.encode() in wheel.read("bridge/__init__.py")
    with tarfile.open(dist / f"whatsapp2mqtt-{NEXT}.tar.gz") as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"Dockerfile", "compose.yaml", "addon/config.yaml", "repository.yaml", "requirements-build.txt"} <= inside


def test_the_bill_of_materials_is_the_lock_file_with_licences(released: Path) -> None:
    """Scanners look there for what is known to be vulnerable."""
    bill = json.loads((released / "dist" / f"whatsapp2mqtt-{NEXT}.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "whatsapp2mqtt")
    assert bill["metadata"]["component"]["version"] == NEXT
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in bill["components"]}
    assert found == locked
    assert all(one["licenses"] for one in bill["components"] if one["name"] != "apsw")
    names = {one["bom-ref"]: one["name"].lower() for one in bill["components"]}
    needs = {
        names.get(one["ref"], "whatsapp2mqtt"): {names[ref] for ref in one["dependsOn"]} for one in bill["dependencies"]
    }
    assert needs["jinja2"] == {"markupsafe"}
    assert "granian" in needs["whatsapp2mqtt"]


def test_the_same_commit_makes_the_same_files(released: Path) -> None:
    """Otherwise nobody can check that the wheel was made of the tag."""
    first = (released / "dist/SHA256SUMS").read_text()
    again = release(released, NEXT, "--of-tag")
    assert again.returncode == 0, again.stderr
    assert (released / "dist/SHA256SUMS").read_text() == first
    other = release(released, "9.9.8", "--of-tag")
    assert (other.returncode, other.stderr) == (1, "what is checked out is not v9.9.8\n")


def test_a_dry_run_keeps_nothing(copy: Path) -> None:
    """It is what one does first."""
    before = git(copy, "rev-parse", "HEAD")
    tried = release(copy, NEXT, "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert f"tag v{NEXT}" in tried.stdout
    assert f"whatsapp2mqtt-{NEXT}-py3-none-any.whl" in tried.stdout
    assert git(copy, "rev-parse", "HEAD") == before
    assert git(copy, "tag", "--list") == ""
    assert git(copy, "status", "--porcelain") == ""
    assert not (copy / "dist").exists()


@pytest.mark.parametrize(
    ("version", "change", "words"),
    [
        ("1", "", "1 is no version; write e.g. 0.2.0"),
        ("0.0.9", "", f"0.0.9 is not newer than {__version__}"),
        (NEXT, "git tag v9.9.9", "there is a tag v9.9.9 already"),
        (NEXT, "touch new", "there are changes that are not committed"),
        (NEXT, "echo '## [Unreleased]' > CHANGELOG.md", r"nothing stands below \[Unreleased\] in CHANGELOG.md"),
        (
            NEXT,
            "rm -r tests/upgrades/*/journal.db",
            "no journal with schema 1 is kept for later versions to upgrade: python -m tests.upgrades.make 9.9.9",
        ),
        (NEXT, "rm tests/upgrades/*/journal.sql", "no journal of PostgreSQL with schema 1 is kept"),
        (NEXT, "sed -i /webhook.drain/d tests/upgrades/*/means.json", "no settings file with every setting is kept"),
    ],
)
def test_what_is_not_ready_is_not_released(copy: Path, version: str, change: str, words: str) -> None:
    """A release cannot be taken back: PyPI takes each version once."""
    subprocess.run(["sh", "-ec", change], cwd=copy, check=True)
    if "new" not in change and change:
        git(copy, "add", "--all")
        git(copy, "commit", "--quiet", "--allow-empty", "--message", "x")
    refused = release(copy, version)
    assert refused.returncode == 1
    assert re.search(f"not released: .*{words}", refused.stderr), refused.stderr


def test_what_was_taken_back_can_be_released_again(copy: Path) -> None:
    """One finds a mistake in what was made, mends it, and makes it again."""
    before = git(copy, "rev-parse", "HEAD")
    for _ in range(2):
        made = release(copy, NEXT)
        assert made.returncode == 0, made.stderr
        assert made.stdout.index(f"git push origin v{NEXT}\n") < made.stdout.index("git push origin main\n")
        take_back = made.stdout.splitlines()[-1].strip()
        subprocess.run(["sh", "-ec", take_back], cwd=copy, check=True, capture_output=True)
        assert (git(copy, "rev-parse", "HEAD"), git(copy, "tag", "--list")) == (before, "")


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def test_nothing_is_published_untested() -> None:
    """PyPI takes each version once, and has no way back."""
    jobs = workflow("release")["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/test.yml"
    assert "workflow_call" in workflow("test")[True]  # `on`, which is true in YAML 1.1

    def waits(job: str) -> bool:
        needs = jobs[job].get("needs", [])
        return job == "test" or any(waits(one) for one in ([needs] if isinstance(needs, str) else needs))

    assert [job for job in jobs if not waits(job)] == []


def test_the_workflows_try_every_python_that_is_named() -> None:
    """One that is named and never tried is a promise that nobody keeps."""
    tried = workflow("test")["jobs"]["checks"]["strategy"]["matrix"]["python"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert tried == named
