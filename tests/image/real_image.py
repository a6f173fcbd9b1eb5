"""The image as it is built and run: `scripts/test-image`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bridge import __version__
from tests.integration.brokers import Mosquitto
from tests.system.support import Subscriber, children, free_port, program
from tests.unit.test_homeassistant_app import CONFIG, Answering

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("IMAGE_CACHE", ROOT / ".image"))
STORE = ["--root", str(CACHE / "store"), "--runroot", str(CACHE / "run"), "--storage-driver", "vfs"]
BASE = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
IMAGE = "localhost/whatsapp2mqtt:tested"

#: Seconds after which something that should have happened has not; never a measure of speed.
PATIENCE = 60

T = TypeVar("T")


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert not check or ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended


def buildah(*arguments: object) -> str:
    return run("buildah", *STORE, *arguments).stdout.strip()


def podman(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("podman", *STORE, "--cgroup-manager", "cgroupfs", *arguments, check=check)


def wait_for(holds: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)
    return found


def build(name: str, folder: str = ".", **arguments: str) -> str:
    """Build an image as it stands in the Dockerfile there, from the wheels that were fetched before."""
    (CACHE / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    mounts = [f"{CACHE}/wheels:/wheels:ro", f"{CACHE}/pip.conf:/etc/pip.conf:ro"]
    volumes = [word for mount in mounts for word in ("-v", mount)]
    given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    # The other format that buildah knows drops the health check.
    how = ["--isolation", "chroot", "--format", "docker", "--pull-never", "--network", "host", "--timestamp", "0"]
    buildah("build", "--no-cache", *how, *volumes, *given, "-t", name, folder)
    return name


def build_ours(name: str) -> str:
    return build(name, VERSION=__version__, REVISION="abc123")


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    shutil.rmtree(CACHE / "store", ignore_errors=True)
    shutil.rmtree(CACHE / "run", ignore_errors=True)
    container = buildah("from", "scratch")
    buildah("add", container, CACHE / "base.tar", "/")
    buildah("commit", "--rm", container, BASE)
    yield build_ours(IMAGE)
    podman("rm", "--all", "--force", check=False)
    shutil.rmtree(CACHE / "store", ignore_errors=True)


class Container:
    """The bridge as a container, hardened as the documents say."""

    def __init__(self, image: str, data: Path, **environment: str) -> None:
        self.name = f"w-{secrets.token_hex(4)}"
        self.port = free_port()
        self.token = secrets.token_urlsafe(16)
        limits = ["--cgroups", "disabled", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"]
        hardened = [
            "--read-only",
            "--read-only-tmpfs=false",
            "--cap-drop",
            "all",
            "--security-opt",
            "no-new-privileges",
        ]
        settings = {
            "WHATSAPP2MQTT_WEBHOOK__LISTEN": f"0.0.0.0:{self.port}",
            "WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN": self.token,
            "WHATSAPP2MQTT_ADMIN__LISTEN": f"127.0.0.1:{free_port()}",
            **environment,
        }
        variables = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        self.began = time.monotonic()
        podman(
            "run",
            "-d",
            "--name",
            self.name,
            "--network",
            "host",
            *limits,
            *hardened,
            *variables,
            "-v",
            f"{data}:/data",
            image,
        )

    def said(self) -> str:
        ended = podman("logs", self.name, check=False)
        return ended.stdout + ended.stderr

    def wait_said(self, text: str) -> float:
        """Until it says so; seconds since it was started."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return time.monotonic() - self.began

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return podman("exec", self.name, *command, check=check)

    def inspect(self) -> Any:
        return json.loads(podman("inspect", self.name).stdout)[0]

    def stop(self) -> int:
        """As `docker stop` does: SIGTERM, and SIGKILL if that does not help; the exit code."""
        podman("stop", "-t", "30", self.name)
        return int(self.inspect()["State"]["ExitCode"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A volume, as Docker makes it from what the image has at that place."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, 10001, 10001)
    return folder


def test_nothing_in_it_builds_or_installs_and_it_says_what_it_is(image: str) -> None:
    """What is not needed is only of use to somebody who broke in."""
    found = json.loads(podman("image", "inspect", image).stdout)[0]
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert list(config["Volumes"]) == ["/data"]
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert (config["Entrypoint"], config["Cmd"]) == (["whatsapp2mqtt"], ["run"])
    assert found["Healthcheck"]["Test"] == ["CMD", "whatsapp2mqtt", "healthy"]
    labels = {name.rpartition(".")[2]: value for name, value in found["Labels"].items()}
    assert (labels["version"], labels["revision"], labels["licenses"]) == (__version__, "abc123", "MIT")
    history = " ".join(str(layer.get("CreatedBy", layer)) for layer in found["History"])
    assert "pip.conf" not in history
    with mounted(image) as root:
        ours = root / "opt/whatsapp2mqtt"
        names = {one.name.partition("-")[0] for one in ours.glob("lib/python3*/site-packages/*")}
        assert "granian" in names
        assert not names & {"pip", "setuptools", "hatchling", "editables"}
        assert not [one for one in ("cc", "gcc", "make", "curl", "wget") if (root / "usr/bin" / one).exists()]
        assert not (root / "wheels").exists() or not list((root / "wheels").iterdir())
        assert not (root / "src").exists()
        layer = sum(one.stat().st_size for one in ours.rglob("*") if one.is_file() and not one.is_symlink())
    print(f"\n/opt/whatsapp2mqtt: {layer / 1e6:.1f} MB; image on this base: {found['Size'] / 1e6:.1f} MB")


class mounted:  # noqa: N801  (reads as a word)
    """An image's files, for looking at."""

    def __init__(self, image: str) -> None:
        self._image = image

    def __enter__(self) -> Path:
        return Path(podman("image", "mount", self._image).stdout.strip())

    def __exit__(self, *_: object) -> None:
        podman("image", "unmount", self._image)


def test_the_same_sources_make_the_same_files(image: str) -> None:
    """Otherwise nobody can tell whether an image is made of what it says."""
    again = build_ours("localhost/whatsapp2mqtt:again")
    with mounted(image) as first, mounted(again) as second:
        ours = "opt/whatsapp2mqtt"
        ended = run("diff", "-r", "--no-dereference", first / ours, second / ours, check=False)
    podman("rmi", again)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_without_a_word_about_who_may_post_it_says_what_to_add(image: str, data: Path) -> None:
    """Open to the network, anybody could open the gate."""
    container = Container(image, data, WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN="")
    code = int(podman("wait", container.name).stdout)
    assert code == 2
    assert "nothing says who may post; add " in container.said()
    assert "WHATSAPP2MQTT_WEBHOOK__AUTH__PATH_TOKEN" in container.said()


def test_a_click_gets_through_to_a_broker_elsewhere(image: str, data: Path, tmp_path: Path) -> None:
    """It is what the image is for; with a root that cannot be written, and no capabilities."""
    with Mosquitto(program("mosquitto"), tmp_path / "mosquitto") as broker:
        container = Container(image, data, WHATSAPP2MQTT_MQTT__URL=f"mqtt://127.0.0.1:{broker.port}")
        seconds = container.wait_said('"event": "connected"')
        print(f"\nfrom `run` to connected: {seconds:.1f} s")
        with Subscriber(broker.port, "whatsapp/#") as subscriber:
            assert "stored" in click(container)
            subscriber.wait("whatsapp/event/button/open_gate")
        assert container.run("id", "-u").stdout.strip() == "10001"
        assert container.run("touch", "/opt/x", check=False).returncode != 0
        assert container.run("touch", "/tmp/x", check=False).returncode != 0
        status = container.run("cat", "/proc/1/status").stdout
        assert re.search(r"CapEff:\s+0+\n", status)
        assert re.search(r"NoNewPrivs:\s+1", status)
        # What Docker does by itself, every 30 seconds.
        podman("healthcheck", "run", container.name)
        assert container.stop() == 0
        assert '"event": "stopped"' in container.said()
    assert (data / "journal.db").exists()


def test_with_its_own_broker_it_goes_on_where_it_was(image: str, data: Path) -> None:
    """One volume is all that has to be kept."""
    port = free_port()
    settings = {"WHATSAPP2MQTT_MQTT__EMBEDDED__LISTEN": f"127.0.0.1:{port}"}
    for _ in range(2):
        container = Container(image, data, **settings)
        container.wait_said('"event": "connected"')
        click(container)
        with Subscriber(port, "whatsapp/#") as subscriber:
            subscriber.wait("whatsapp/button/open_gate")
        podman("healthcheck", "run", container.name)
        assert container.stop() == 0
    names = {one.name for one in data.iterdir()}
    assert {"journal.db", "broker"} <= names


def test_a_bridge_that_hangs_is_told_to_be_unhealthy(image: str, data: Path) -> None:
    """Nobody would look at it, or start it anew."""
    container = Container(image, data, WHATSAPP2MQTT_MQTT__EMBEDDED__LISTEN=f"127.0.0.1:{free_port()}")
    container.wait_said('"event": "connected"')
    podman("healthcheck", "run", container.name)
    pid = int(container.inspect()["State"]["Pid"])
    os.kill(pid, 19)  # SIGSTOP
    try:
        found = podman("healthcheck", "run", container.name, check=False)
        assert found.returncode == 1, found
    finally:
        os.kill(pid, 18)
    wait_for(lambda: podman("healthcheck", "run", container.name, check=False).returncode == 0)
    assert container.stop() == 0


def click(container: Container) -> str:
    url = f"http://127.0.0.1:{container.port}/webhook/{container.token}"
    return container.run("whatsapp2mqtt", "simulate", "--url", url, "button").stdout


def test_the_app_of_home_assistant_needs_nothing_but_a_broker(image: str, tmp_path: Path) -> None:
    """As the Supervisor builds and starts it: from its folder alone, with options as they are at first, and as root."""
    app = build("localhost/whatsapp2mqtt:app", "addon", BUILD_VERSION=__version__, BUILD_ARCH="amd64")
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    options = data / "options.json"
    options.write_text(json.dumps(CONFIG["options"]))
    options.chmod(0o600)
    users = {"addons": "from-the-supervisor"}
    name = f"w-{secrets.token_hex(4)}"
    with Mosquitto(program("mosquitto"), tmp_path / "mosquitto", users=users) as broker, Answering(80) as supervisor:
        supervisor.broker = {
            "host": "127.0.0.1",
            "port": broker.port,
            "username": "addons",
            "password": users["addons"],
        }
        limits = ["--cgroups", "disabled", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"]
        home = ["--network", "host", "--add-host", "supervisor:127.0.0.1", "-e", "SUPERVISOR_TOKEN=the-token"]
        podman("run", "-d", "--name", name, *limits, *home, "-v", f"{data}:/data", app)
        wait_for(lambda: '"event": "connected"' in podman("logs", name).stderr + podman("logs", name).stdout)
        token = supervisor.asked[0][2]["options"]["path_token"]
        with Subscriber(broker.port, "whatsapp/#", "addons", users["addons"]) as subscriber:
            assert post(8080, f"/webhook/{token}") == 200
            subscriber.wait("whatsapp/m1/status")
        # The page is for Home Assistant's proxy alone.
        assert look("172.30.32.2") == 200
        assert look("127.0.0.1") == 403
        podman("healthcheck", "run", name)
        main = int(json.loads(podman("inspect", name).stdout)[0]["State"]["Pid"])
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in (main, *children(main))}
        assert owners == {10001}
        assert b"the-token" not in Path(f"/proc/{main}/environ").read_bytes()
        assert (options.stat().st_uid, (data / "journal.db").stat().st_uid) == (0, 10001)
        podman("stop", "-t", "30", name)
        assert json.loads(podman("inspect", name).stdout)[0]["State"]["ExitCode"] == 0
        supervisor.shutdown()


def post(port: int, path: str) -> int:
    body = json.dumps({"statuses": [{"id": "m1", "status": "sent"}]})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status


def look(source: str) -> int:
    """The page, as asked from this address."""
    there = http.client.HTTPConnection("127.0.0.1", 8099, timeout=PATIENCE, source_address=(source, 0))
    with contextlib.closing(there) as connection:
        connection.request("GET", "/api/status", headers={"X-Ingress-Path": "/api/hassio_ingress/abc"})
        return connection.getresponse().status
