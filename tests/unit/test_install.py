"""What `install-service` writes and runs; scripts/test-systemd tries it where a systemd boots."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bridge import __version__, install
from bridge.config import ConfigError, load
from bridge.drop_in import DropInError
from bridge.install import InstallError, Program, System
from tests.system.support import program

OPT = Program(Path("/opt/w/bin/whatsapp2mqtt"), (Path("/opt/w"), Path("/usr")), "1.0.0, 0123456789ab")


class Machine:
    """A root folder of its own, and what was run and said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.said: list[str] = []
        self.variables: dict[str, str] = {}
        self.is_asked_in_vain = False

    def system(self, *, is_running: bool = True, is_root: bool = True) -> System:
        return System(self.folder, self._run, self._variables, is_running, is_root)

    def _run(self, command: Sequence[str]) -> None:
        self.ran.append(" ".join(command))

    def _variables(self) -> dict[str, str]:
        if self.is_asked_in_vain:
            raise DropInError("busctl: No such file or directory")
        return self.variables

    def settings(self, text: str) -> Path:
        file = self.folder / "etc/whatsapp2mqtt/config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

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
    assert 'exec /opt/w/bin/whatsapp2mqtt as-service -- "$@"' in machine.read("usr/local/sbin/whatsapp2mqtt-service")
    assert load(machine.folder / "etc/whatsapp2mqtt/config.yaml", environ={}).origins == {}


def test_the_same_again_writes_nothing_and_leaves_the_bridge_running(machine: Machine) -> None:
    """Whoever runs it from a playbook would restart the bridge each time."""
    machine.install()
    assert machine.install() == [
        "systemctl enable --quiet whatsapp2mqtt.socket whatsapp2mqtt.service",
        "systemctl start whatsapp2mqtt.service",
    ]
    assert not [line for line in machine.said if line.startswith("write")]


@pytest.mark.parametrize("build", ["1.1.0, 0123456789ab", "1.0.0, ba9876543210"], ids=["version", "files"])
def test_another_program_in_the_same_place_is_started(machine: Machine, build: str) -> None:
    """After an upgrade the old version would run on, until the machine is switched off."""
    machine.install()
    assert machine.install(replace(OPT, build=build)) == [
        "systemctl daemon-reload",
        "systemctl enable --quiet whatsapp2mqtt.socket whatsapp2mqtt.service",
        "systemctl restart whatsapp2mqtt.service",  # without the socket, in which callbacks wait meanwhile
    ]
    assert f"# Program: whatsapp2mqtt {build}\n" in machine.read("etc/systemd/system/whatsapp2mqtt.service")
    assert machine.install(replace(OPT, build=build))[-1] == "systemctl start whatsapp2mqtt.service"


def test_what_only_the_service_is_given_does_not_stop_an_upgrade(machine: Machine) -> None:
    """Who keeps the secret in a credential could install the service once, and never again."""
    machine.settings("webhook: {listen: '192.168.1.5:8080'}\n")
    machine.install()
    assert "ListenStream=192.168.1.5:8080\n" in machine.read("etc/systemd/system/whatsapp2mqtt.socket")


def test_an_address_that_a_drop_in_sets_is_listened_on(machine: Machine) -> None:
    """The bridge refuses to start where its socket has another address than its settings."""
    machine.settings("webhook: {listen: '127.0.0.1:9999'}\n")
    machine.variables = {
        "WHATSAPP2MQTT_WEBHOOK__LISTEN": "127.0.0.1:8888",
        "WHATSAPP2MQTT_MQTT__PASSWORD_FILE": "/run/credentials/whatsapp2mqtt.service/of-the-service-alone",
    }
    machine.install()
    assert "ListenStream=127.0.0.1:8888\n" in machine.read("etc/systemd/system/whatsapp2mqtt.socket")


def test_a_systemd_that_cannot_be_asked_is_told_and_done_without(machine: Machine) -> None:
    """Without D-Bus there is no `busctl`; most have no drop-in at all."""
    machine.is_asked_in_vain = True
    assert machine.install()[-1] == "systemctl restart whatsapp2mqtt.service"
    assert machine.said[0].endswith("so the settings file alone counts: busctl: No such file or directory")


def test_settings_that_are_there_stay(machine: Machine) -> None:
    """They hold what the user entered."""
    settings = machine.settings("webhook: {listen: '127.0.0.1:9999'}\n")
    machine.install()
    assert settings.read_text() == "webhook: {listen: '127.0.0.1:9999'}\n"
    assert "ListenStream=127.0.0.1:9999\n" in machine.read("etc/systemd/system/whatsapp2mqtt.socket")


def test_settings_that_cannot_be_used_stop_it_before_anything_is_written(machine: Machine) -> None:
    """The service would be broken, and the one before gone."""
    machine.settings("webhok: {}\n")
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
    unit = install.service_unit(Program(Path(folder, "bin/whatsapp2mqtt"), (Path(folder), Path("/usr")), "1"))
    assert [line for line in unit.splitlines() if line.startswith("Bind")] == [f"BindReadOnlyPaths={folder}"]


def test_a_path_with_signs_of_systemd_is_the_same_path(tmp_path: Path) -> None:
    """A home called `50% off` would be another folder to systemd, or none."""
    command = Path('/home/50% "off" $HOME/bin/whatsapp2mqtt')
    unit = install.service_unit(Program(command, (command.parents[1],), "1"))
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
    assert re.fullmatch(rf"{re.escape(__version__)}, [0-9a-f]{{12}}", found.build)


def test_the_same_version_with_another_file_is_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone of today is installed over one of yesterday, which has the same version; or a package below is mended."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    for name, record in (("bridge", "bridge/x.py,sha256=a,1"), ("below", "below/y.py,sha256=b,1")):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info/METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (tmp_path / f"{name}-1.0.dist-info/RECORD").write_text(record)
    builds = [install.this_program().build, install.this_program().build]
    for name in ("bridge", "below"):
        (tmp_path / f"{name}-1.0.dist-info/RECORD").write_text(f"{name}/x.py,sha256=c,1")
        builds.append(install.this_program().build)
    assert builds[0] == builds[1]
    assert len(set(builds)) == 3


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
