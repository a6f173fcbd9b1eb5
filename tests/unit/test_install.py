"""What `install-service` writes and runs; scripts/test-systemd tries it where a systemd boots."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bridge import install
from bridge.config import ConfigError, load
from bridge.install import InstallError, Program, System
from tests.system.support import program

OPT = Program(Path("/opt/w/bin/whatsapp2mqtt"), (Path("/opt/w"), Path("/usr")))


class Machine:
    """A root folder of its own, and what was run and said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.said: list[str] = []

    def system(self, *, is_running: bool = True, is_root: bool = True) -> System:
        return System(self.folder, self._run, is_running, is_root)

    def _run(self, command: Sequence[str]) -> None:
        self.ran.append(" ".join(command))

    def install(self, program: Program = OPT, **options: bool) -> list[str]:
        """Install; what was run."""
        self.ran.clear()
        self.said.clear()
        install.install(self.system(), program, self.said.append, **options)
        return self.ran

    def read(self, path: str) -> str:
        return (self.folder / path).read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def files(folder: Path) -> dict[str, int]:
    return {str(one.relative_to(folder)): one.stat().st_mode & 0o777 for one in folder.rglob("*") if one.is_file()}


def test_it_writes_units_settings_and_a_command_for_root(machine: Machine) -> None:
    """Without one of them there is no service, or nobody can look after it."""
    assert machine.install() == [
        "systemctl daemon-reload",
        "systemctl stop whatsapp2mqtt.socket whatsapp2mqtt.service",
        "systemctl enable --quiet whatsapp2mqtt.socket whatsapp2mqtt.service",
        "systemctl restart whatsapp2mqtt.service",
    ]
    assert files(machine.folder) == {
        "etc/whatsapp2mqtt/config.yaml": 0o600,
        "etc/systemd/system/whatsapp2mqtt.socket": 0o644,
        "etc/systemd/system/whatsapp2mqtt.service": 0o644,
        "usr/local/sbin/whatsapp2mqtt-service": 0o755,
    }
    assert "ExecStart=/opt/w/bin/whatsapp2mqtt run" in machine.read("etc/systemd/system/whatsapp2mqtt.service")
    assert "exec /opt/w/bin/whatsapp2mqtt" in machine.read("usr/local/sbin/whatsapp2mqtt-service")
    assert load(machine.folder / "etc/whatsapp2mqtt/config.yaml", environ={}).origins == {}


def test_the_same_again_writes_nothing_and_leaves_the_bridge_running(machine: Machine) -> None:
    """Whoever runs it from a playbook would restart the bridge each time."""
    machine.install()
    assert machine.install() == [
        "systemctl enable --quiet whatsapp2mqtt.socket whatsapp2mqtt.service",
        "systemctl start whatsapp2mqtt.service",
    ]
    assert not [line for line in machine.said if line.startswith("write")]


def test_settings_that_are_there_stay(machine: Machine) -> None:
    """They hold what the user entered."""
    settings = machine.folder / "etc/whatsapp2mqtt/config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("webhook: {listen: '127.0.0.1:9999'}\n")
    machine.install()
    assert settings.read_text() == "webhook: {listen: '127.0.0.1:9999'}\n"
    assert "ListenStream=127.0.0.1:9999\n" in machine.read("etc/systemd/system/whatsapp2mqtt.socket")


def test_settings_that_cannot_be_used_stop_it_before_anything_is_written(machine: Machine) -> None:
    """The service would be broken, and the one before gone."""
    settings = machine.folder / "etc/whatsapp2mqtt/config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("webhok: {}\n")
    with pytest.raises(ConfigError, match="webhok"):
        machine.install()
    assert list(files(machine.folder)) == ["etc/whatsapp2mqtt/config.yaml"]
    assert machine.ran == []


def test_a_dry_run_says_all_and_does_nothing(machine: Machine) -> None:
    """It is for those who want to read first what root will do."""
    assert machine.install(dry_run=True) == []
    assert files(machine.folder) == {}
    said = "\n".join(machine.said)
    assert "would write" in said
    assert "    DynamicUser=yes" in said
    assert "would run systemctl daemon-reload" in said


@pytest.mark.parametrize("folder", ["/home/you/.local/share/pipx/venvs/w", "/root/w", "/tmp/w"])
def test_a_program_in_a_hidden_folder_is_let_in_and_nothing_else(folder: str) -> None:
    """The service could not start; or it could read all of a home."""
    unit = install.service_unit(Program(Path(folder, "bin/whatsapp2mqtt"), (Path(folder), Path("/usr"))))
    assert [line for line in unit.splitlines() if line.startswith("Bind")] == [f"BindReadOnlyPaths={folder}"]


def test_a_path_with_signs_of_systemd_is_the_same_path(tmp_path: Path) -> None:
    """A home called `50% off` would be another folder to systemd, or none."""
    command = Path('/home/50% "off" $HOME/bin/whatsapp2mqtt')
    unit = install.service_unit(Program(command, (command.parents[1],)))
    assert r'ExecStart="/home/50%% \"off\" $$HOME/bin/whatsapp2mqtt" run' in unit
    assert r'BindReadOnlyPaths="/home/50%% \"off\" $$HOME"' in unit


def test_without_systemd_or_root_it_says_what_to_do(machine: Machine) -> None:
    """A stack of Python errors would be all that the user gets."""
    with pytest.raises(InstallError, match=r"docs/installation\.md"):
        install.install(machine.system(is_running=False), OPT, machine.said.append)
    with pytest.raises(InstallError, match=r"sudo .* install-service"):
        install.install(machine.system(is_root=False), OPT, machine.said.append)
    assert files(machine.folder) == {}


def test_uninstalled_settings_and_state_stay(machine: Machine) -> None:
    """Who installs it again would find neither secrets nor journal."""
    machine.install()
    (machine.folder / "var/lib/whatsapp2mqtt").mkdir(parents=True)
    machine.ran.clear()
    install.uninstall(machine.system(), machine.said.append)
    assert list(files(machine.folder)) == ["etc/whatsapp2mqtt/config.yaml"]
    assert machine.ran == [
        "systemctl disable --quiet --now whatsapp2mqtt.socket whatsapp2mqtt.service",
        "systemctl daemon-reload",
    ]
    assert machine.said[-1].endswith("rm -r /etc/whatsapp2mqtt /var/lib/whatsapp2mqtt")
    install.uninstall(machine.system(), machine.said.append)
    assert "there is no service whatsapp2mqtt" in machine.said


def test_this_program_is_found_with_all_that_it_is_made_of() -> None:
    """What is not let in, the service cannot run."""
    found = install.this_program()
    assert found.command.exists()
    assert any(Path(install.__file__).resolve().is_relative_to(folder) for folder in found.folders)


def rendered(folder: Path) -> Path:
    """The units, for a program that is there."""
    here = install.this_program()
    (folder / "whatsapp2mqtt.service").write_text(install.service_unit(here))
    (folder / "whatsapp2mqtt.socket").write_text(install.socket_unit("127.0.0.1:8080"))
    return folder


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program("systemd-analyze"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_systemd_finds_no_mistake_in_the_units(tmp_path: Path) -> None:
    """It ignores what it does not know: a misspelled line of the hardening protects nobody."""
    folder = rendered(tmp_path)
    good = analyze("verify", "--recursive-errors=one", folder / "whatsapp2mqtt.service")
    assert (good.returncode, good.stderr) == (0, "")
    service = folder / "whatsapp2mqtt.service"
    service.write_text(service.read_text().replace("ProtectClock=", "ProtectClok="))
    bad = analyze("verify", "--recursive-errors=one", service)
    assert bad.returncode != 0
    assert "ProtectClok" in bad.stderr


def test_systemd_finds_the_service_well_protected(tmp_path: Path) -> None:
    """1.5 of 10 is what the service is held to; a usual one has 9."""
    found = analyze("security", "--offline=true", "--threshold=15", rendered(tmp_path) / "whatsapp2mqtt.service")
    assert found.returncode == 0, found.stdout
