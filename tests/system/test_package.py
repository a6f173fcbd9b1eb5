"""The built package: what a user gets who never sees this repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from bridge import __version__
from tests.system.support import Bridge, clean_environment

ROOT = Path(__file__).parents[2]


class Built(NamedTuple):
    sdist: Path
    wheel: Path


def run(*command: object, folder: Path) -> str:
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel and the packages of requirements.txt, and nothing else.

    The packages are those of this environment, linked file by file: so nothing is fetched, and none that only tests
    need can be imported there.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE):
        for file in distribution(name).files or []:
            source, target = Path(str(file.locate())).resolve(), site / file
            if source.exists() and target.parent.resolve().is_relative_to(folder) and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, built.wheel, folder=folder)
    return folder


def test_the_wheel_has_all_that_is_needed_and_nothing_else(built: Built) -> None:
    """Without py.typed types are not seen; tests or scripts in the wheel would land in everyone's site-packages."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"whatsapp2mqtt-{__version__}.dist-info/METADATA").decode()
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "bridge").rglob("*.py")}
    assert sources <= names
    assert {"bridge/py.typed", "bridge/config.example.yaml"} <= names
    assert f"whatsapp2mqtt-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"bridge", f"whatsapp2mqtt-{__version__}.dist-info"}
    assert "Provides-Extra: embedded" in metadata
    assert (ROOT / "README.md").read_text() in metadata


def test_the_sdist_has_what_a_distributor_needs(built: Built) -> None:
    """Distributions build from the sdist, and run the tests that came with it."""
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "config.example.yaml",
        "pyproject.toml",
        "requirements.txt",
        "requirements-test.txt",
        "scripts/test",
        "docs/how-it-works.md",
        "tests/system/test_package.py",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


def test_the_installed_package_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    """Whoever installs it with pip would find that it only works for its developers."""
    command = installed / "bin" / "whatsapp2mqtt"
    assert run(command, "version", folder=tmp_path).startswith(f"whatsapp2mqtt {__version__}\n")
    assert run(command, "check", folder=tmp_path).startswith("webhook:\n")
    place = run(installed / "bin" / "python", "-c", "import bridge; print(bridge.__file__)", folder=tmp_path)
    assert Path(place.strip()).is_relative_to(installed)


def test_the_installed_package_brings_a_settings_file_to_start_from(installed: Path, tmp_path: Path) -> None:
    """The message about an unknown setting points to it."""
    (example,) = installed.glob("lib/python*/site-packages/bridge/config.example.yaml")
    assert example.read_text() == (ROOT / "config.example.yaml").read_text()
    run(installed / "bin" / "whatsapp2mqtt", "check", "--config", example, folder=tmp_path)


def test_the_installed_package_does_the_main_job(installed: Path, tmp_path: Path) -> None:
    """A dependency that only the tests brought along would be missed at the user's first callback."""
    bridge = Bridge(tmp_path, command=[installed / "bin" / "whatsapp2mqtt", "run"])
    try:
        bridge.start()
        assert bridge.post({"statuses": [{"id": "m1", "status": "sent"}]}).json["stored"] == 1
        with bridge.listen() as subscriber:
            subscriber.wait("whatsapp/m1/status")
        assert bridge.program.end() == 0
    finally:
        bridge.__exit__()
