"""The service in a Debian that really boots: `scripts/test-systemd`.

The tests go along the life of one installation, in this order.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".systemd"
HOME_PROGRAM = "/home/you/.local/bin/whatsapp2mqtt"
OPT_PROGRAM = "/opt/whatsapp2mqtt/bin/whatsapp2mqtt"
SERVICE = "whatsapp2mqtt.service"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
SETTINGS = "etc/whatsapp2mqtt/config.yaml"
#: The container has no network.
OFFLINE = "--no-index --find-links /wheels"

#: Seconds after which something that should have happened has not; never a measure of speed.
PATIENCE = 60

T = TypeVar("T")


class Machine:
    """The booted container."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> None:
        command = ["systemd-nspawn", "-D", self.root, "--boot", "--register=no", "--keep-unit", "--private-network"]
        with (self.root.parent / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [*map(str, command), "--quiet"], stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        self._init = wait_for(lambda: int((children.read_text().split() or ["0"])[0]))
        wait_for(
            lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")
        )

    def power_off(self) -> None:
        if self._nspawn is None:
            return
        self.run("systemctl", "poweroff", check=False)
        try:
            self._nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            raise

    def run(self, *command: str, check: bool = True, said: str | None = None) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-p", "-n", "--", *command],
            capture_output=True,
            text=True,
            check=False,
            input=said,
            timeout=PATIENCE * 2,
            env=ENVIRONMENT,
        )
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr + self.said()
        return ended

    def said(self) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", SERVICE, check=False).stdout

    def show(self, name: str, unit: str = SERVICE) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def processes(self) -> dict[int, str]:
        """The bridge's processes and their command lines, as the container numbers them."""
        group = self.show("ControlGroup")
        pids = self.run("cat", f"/sys/fs/cgroup/systemd{group}/cgroup.procs", check=False).stdout
        pids = pids or self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False).stdout
        return {
            int(pid): self.run("cat", f"/proc/{pid}/cmdline", check=False).stdout.replace("\0", " ")
            for pid in pids.split()
        }

    def process(self, word: str) -> int:
        return wait_for(lambda: next((pid for pid, line in self.processes().items() if word in line), 0))

    def kill(self, signal: str, pid: object) -> None:
        self.run("sh", "-c", f"kill -{signal} {pid}")

    def python(self, script: str, *arguments: str) -> str:
        """Run a script in it, with Debian's Python."""
        return self.run("python3", "-", *arguments, said=textwrap.dedent(script)).stdout

    def click(self, *options: str) -> None:
        assert '"stored":1' in self.run("whatsapp2mqtt-service", "simulate", *options, "button").stdout

    def updates(self) -> int:
        """How many updates the journal holds."""
        script = """
        import sqlite3
        journal = sqlite3.connect("/var/lib/whatsapp2mqtt/journal.db")
        print(journal.execute("SELECT count(*) FROM updates").fetchone()[0])
        """
        return int(self.python(script))

    def version(self) -> str:
        """Of the bridge that runs, as its page says."""
        script = """
        import json, urllib.request
        print(json.load(urllib.request.urlopen("http://127.0.0.1:8081/api/status"))["version"])
        """
        return self.python(script).strip()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    @contextlib.contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """A change as `systemctl edit` makes it, and the service started anew with it."""
        path = self.root / "etc/systemd/system/whatsapp2mqtt.service.d/override.conf"
        self.write(str(path.relative_to(self.root)), text)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", SERVICE)
        yield
        shutil.rmtree(path.parent)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "restart", SERVICE)


def wait_for(holds: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("systemd") / "root"
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", CACHE / "debian.tar"], check=True)
    shutil.copytree(CACHE / "wheels", root / "wheels")
    # A clone, as far as it is installed.
    for name in ("bridge", "systemd"):
        shutil.copytree(ROOT / name, root / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.example.yaml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "clone")
    opt = str(Path(OPT_PROGRAM).parents[1])
    for command in (
        ["useradd", "-m", "you"],
        ["su", "-", "you", "-c", f"pipx install --pip-args='{OFFLINE}' '/clone[embedded]'"],
        ["sh", "-c", f"python3 -m venv {opt} && {opt}/bin/pip -q install {OFFLINE} 'whatsapp2mqtt[embedded]'"],
    ):
        subprocess.run(["chroot", root, *command], check=True, env=ENVIRONMENT)
    machine = Machine(root)
    machine.boot()
    yield machine
    machine.power_off()
    shutil.rmtree(root)


def test_a_dry_run_writes_nothing(machine: Machine) -> None:
    said = machine.run(HOME_PROGRAM, "install-service", "--dry-run").stdout
    assert "would write /etc/systemd/system/whatsapp2mqtt.service" in said
    assert "would run systemctl restart whatsapp2mqtt.service" in said
    assert not (machine.root / "etc/whatsapp2mqtt").exists()
    assert not list((machine.root / "etc/systemd/system").glob("whatsapp2mqtt*"))


def test_it_starts_from_a_home_directory(machine: Machine) -> None:
    machine.run(HOME_PROGRAM, "install-service")
    assert machine.show("ActiveState") == "active"
    assert machine.show("UnitFileState") == "enabled"
    wait_for(lambda: machine.show("StatusText") == "connected")
    machine.click()
    assert machine.updates() == 1


def test_the_same_again_changes_nothing(machine: Machine) -> None:
    before = machine.show("MainPID")
    assert machine.run(HOME_PROGRAM, "install-service").stdout.endswith("everything was as it should be\n")
    assert machine.show("MainPID") == before


def test_the_hardening_is_in_force(machine: Machine) -> None:
    for pid in machine.processes():
        status = dict(line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").stdout.splitlines())
        assert int(status["Uid"].split()[0]) >= 61184  # a dynamic user's
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
    within = ["nsenter", "-t", machine.show("MainPID"), "-m", "--"]
    assert machine.run(*within, "ls", "-A", "/home", "/home/you", "/root").stdout.split() == [
        *("/home:", "you", "/home/you:", ".local", "/root:"),
    ]
    assert machine.run(*within, "touch", "/usr/x", check=False).returncode != 0
    assert oct((machine.root / "etc/whatsapp2mqtt/config.yaml").stat().st_mode & 0o777) == "0o600"


LOAD = """
import http.client, json, sys, time
answers = {}
slowest, number, until = 0, 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    number += 1
    began = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
        body = json.dumps({"statuses": [{"id": f"{sys.argv[2]}-{number}", "status": "sent"}]})
        connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        word = str(answer.status)
    except Exception as error:
        word = type(error).__name__
    slowest = max(slowest, time.monotonic() - began)
    answers[word] = answers.get(word, 0) + 1
    time.sleep(0.005)
print(json.dumps({"answers": answers, "slowest": slowest}))
"""


@contextlib.contextmanager
def callbacks(machine: Machine, how: str) -> Iterator[None]:
    """One callback after the other meanwhile, each of which is answered 200 and stored."""
    before = machine.updates()
    machine.write("load.py", LOAD)
    with subprocess.Popen(
        ["nsenter", "-t", str(machine._init), "-m", "-u", "-i", "-p", "-n", "--", "python3", "/load.py", "8", how],
        stdout=subprocess.PIPE,
        text=True,
    ) as load:
        time.sleep(2)
        yield
        assert load.stdout is not None
        found = json.loads(load.stdout.read())
    print(how, found)
    assert set(found["answers"]) == {"200"}
    assert machine.updates() == before + found["answers"]["200"]


@pytest.mark.parametrize("how", ["restart", "reload-or-restart"])
def test_no_callback_is_refused_while_it_restarts(machine: Machine, how: str) -> None:
    with callbacks(machine, how):
        machine.run("systemctl", how, SERVICE)
        time.sleep(2)
        machine.run("systemctl", how, SERVICE)


def test_after_an_upgrade_the_new_version_runs_and_no_callback_was_refused(machine: Machine) -> None:
    file = machine.root / "clone/bridge/__init__.py"
    for number, line in enumerate(('__version__ = "99.0.0"', '__version__ = "99.0.0"  # the version may stay')):
        pid, old = machine.show("MainPID"), machine.version()
        file.write_text(re.sub("(?m)^__version__ = .*$", line, file.read_text()))
        machine.run("su", "-", "you", "-c", f"pipx upgrade --pip-args='{OFFLINE}' whatsapp2mqtt")
        assert (machine.version(), machine.show("MainPID")) == (old, pid)
        with callbacks(machine, f"upgrade-{number}"):
            machine.run(HOME_PROGRAM, "install-service")
        assert machine.show("MainPID") not in ("0", pid)
        assert machine.version() == "99.0.0"
        test_the_same_again_changes_nothing(machine)


def test_after_kill_9_it_comes_back_with_its_journal(machine: Machine) -> None:
    before, restarts, pid = machine.updates(), int(machine.show("NRestarts")), machine.show("MainPID")
    machine.kill("KILL", pid)
    wait_for(lambda: machine.show("ActiveState") == "active" and machine.show("MainPID") not in ("0", pid))
    assert int(machine.show("NRestarts")) == restarts + 1
    machine.click()
    assert machine.updates() == before + 1


@pytest.mark.parametrize("word", ["spawn_main", "nats-server"])
def test_a_part_that_is_killed_is_started_again_alone(machine: Machine, word: str) -> None:
    main, part = machine.show("MainPID"), machine.process(word)
    machine.kill("KILL", part)
    wait_for(lambda: next((pid for pid, line in machine.processes().items() if word in line and pid != part), 0))
    wait_for(lambda: machine.show("StatusText") == "connected")
    assert machine.show("MainPID") == main
    machine.click()


def test_the_watchdog_ends_a_bridge_that_hangs(machine: Machine) -> None:
    with machine.drop_in("[Service]\nWatchdogSec=3\n"):
        pid = machine.show("MainPID")
        time.sleep(7)
        assert machine.show("MainPID") == pid  # one that is well lives on
        machine.kill("STOP", pid)
        wait_for(lambda: "Watchdog timeout" in machine.said())
        wait_for(lambda: machine.show("ActiveState") == "active" and machine.show("MainPID") not in ("0", pid))
        machine.click()


@pytest.mark.parametrize("how", ["LoadCredential", "LoadCredentialEncrypted"])
def test_a_secret_can_be_a_credential_that_commands_and_upgrades_know_too(machine: Machine, how: str) -> None:
    good = (machine.root / SETTINGS).read_text()
    machine.write("etc/whatsapp2mqtt/path_token", "a-secret-of-the-webhook\n", 0o600)
    if how == "LoadCredentialEncrypted":
        folder = "/etc/whatsapp2mqtt"
        machine.run("systemd-creds", "encrypt", f"{folder}/path_token", f"{folder}/encrypted", "--name=path_token")
        machine.run("mv", f"{folder}/encrypted", f"{folder}/path_token")
    with machine.drop_in(
        f"[Service]\n{how}=path_token:/etc/whatsapp2mqtt/path_token\n"
        "Environment=WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN_FILE=%d/path_token\n"
    ):
        # Without that secret, this one may not be.
        machine.write(SETTINGS, good + "webhook: {listen: '0.0.0.0:8080'}\n", 0o600)
        machine.run(HOME_PROGRAM, "install-service")
        test_the_same_again_changes_nothing(machine)
        machine.click()  # by the address with the secret
        refused = machine.run(HOME_PROGRAM, "simulate", "button", check=False)
        assert refused.returncode == 1
        assert "404" in refused.stdout + refused.stderr
        machine.run("systemctl", "stop", "whatsapp2mqtt.socket")
        said = machine.run("whatsapp2mqtt-service", "check").stdout
        assert "# WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN_FILE" in said
        machine.write(SETTINGS, good, 0o600)
        machine.run(HOME_PROGRAM, "install-service")
        machine.click()


def test_wrong_settings_are_named_and_mended_ones_taken_without_a_hand(machine: Machine) -> None:
    good = (machine.root / SETTINGS).read_text()
    machine.write(SETTINGS, good + "mqtt: {urll: embedded}\n", 0o600)
    machine.run("systemctl", "restart", "--no-block", SERVICE)
    wait_for(lambda: "config.yaml:3: mqtt.urll: is no setting; did you mean mqtt.url?" in machine.said())
    machine.write(SETTINGS, good, 0o600)
    wait_for(lambda: machine.show("StatusText") == "connected")
    machine.click()


def test_another_address_is_taken_over_by_installing_again(machine: Machine) -> None:
    good = (machine.root / SETTINGS).read_text()
    for text, port in ((good + "webhook: {listen: '127.0.0.1:8090'}\n", 8090), (good, 8080)):
        machine.write(SETTINGS, text, 0o600)
        machine.run("systemctl", "restart", "--no-block", SERVICE)
        wait_for(lambda port=port: f"webhook.listen: is 127.0.0.1:{port}, but systemd listens on" in machine.said())
        machine.run(HOME_PROGRAM, "install-service")
        machine.click("--url", f"http://127.0.0.1:{port}/webhook")


def test_a_backup_is_restored_by_root_and_read_by_the_service(machine: Machine) -> None:
    before = machine.updates()
    machine.run("whatsapp2mqtt-service", "backup", "/root/copy.db")
    machine.click()
    machine.run("systemctl", "stop", "whatsapp2mqtt.socket")  # and with it the service
    assert machine.show("ActiveState") == "inactive"
    machine.run("whatsapp2mqtt-service", "restore", "/root/copy.db")
    machine.run("systemctl", "start", SERVICE)
    wait_for(lambda: machine.show("StatusText") == "connected")
    assert machine.updates() == before
    machine.click()


def test_it_starts_at_boot_with_its_journal(machine: Machine) -> None:
    before = machine.updates()
    machine.power_off()
    machine.boot()
    wait_for(lambda: machine.show("StatusText") == "connected")
    assert machine.updates() == before
    machine.click()


def test_a_program_elsewhere_takes_the_service_over(machine: Machine) -> None:
    before = machine.updates()
    machine.run(OPT_PROGRAM, "install-service")
    assert machine.processes()[int(machine.show("MainPID"))].startswith("/opt/whatsapp2mqtt/")
    assert machine.updates() == before
    machine.click()


def test_systemd_itself_finds_it_well_protected(machine: Machine) -> None:
    said = machine.run("systemd-analyze", "security", "--no-pager", SERVICE).stdout
    print(said.splitlines()[-1])
    assert float(said.splitlines()[-1].split(":")[1].split()[0]) <= 1.5


def test_uninstalled_nothing_is_left_but_settings_and_state(machine: Machine) -> None:
    said = machine.run(OPT_PROGRAM, "install-service", "--uninstall").stdout
    assert "settings and state stay" in said
    assert machine.show("LoadState") == machine.show("LoadState", "whatsapp2mqtt.socket") == "not-found"
    assert not list((machine.root / "etc/systemd").rglob("whatsapp2mqtt*"))
    assert not (machine.root / "usr/local/sbin/whatsapp2mqtt-service").exists()
    assert (machine.root / SETTINGS).exists()
    assert (machine.root / "var/lib/private/whatsapp2mqtt/journal.db").exists()
    assert "there is no service" in machine.run(OPT_PROGRAM, "install-service", "--uninstall").stdout
