"""What is measured: the bridge and its peers, each behind the same three calls: start, port, end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol, Self

from tests.bench.report import NODE_RED
from tests.torture.harness import Bridge, children, command_line, free_port, wait_until


class Peer(Protocol):
    """Something that takes callbacks by HTTP."""

    port: int

    def start(self) -> Self: ...

    def end(self) -> None: ...

    def processes(self) -> dict[str, int]:
        """What it consists of, by name: process ids."""
        ...


class NodeRed:
    """Node-RED as people use it: http in, function, mqtt out with QoS 1, retained; it answers at once.

    Args:
        folder: Its settings and flow.
        broker: The broker's port.
        program: The `node-red` that `install_node_red` made.
    """

    def __init__(self, folder: Path, broker: int, program: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._broker = broker
        self._program = program
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "flows.json").write_text(json.dumps(self._flow()))
        (self._folder / "settings.js").write_text(
            f"module.exports = {{uiPort: {self.port}, uiHost: '127.0.0.1', flowFile: 'flows.json', "
            "credentialSecret: false, httpAdminRoot: false, telemetry: {enabled: false}, "
            "logging: {console: {level: 'warn', metrics: false, audit: false}}}"
        )
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._program), "-u", str(self._folder), "-s", str(self._folder / "settings.js")],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: post(self.port) == 200, "Node-RED answers")
        return self

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def processes(self) -> dict[str, int]:
        assert self.process is not None
        return {"node": self.process.pid}

    def _flow(self) -> list[dict[str, Any]]:
        function = """
            const out = [];
            for (const s of msg.payload.statuses || [])
                out.push({topic: `whatsapp/${encodeURIComponent(s.id)}/status`, payload: s, retain: true, qos: 1});
            for (const m of msg.payload.messages || [])
                if (m.button)
                    out.push({topic: `whatsapp/button/${encodeURIComponent(m.button.payload)}`, payload: m,
                              retain: true, qos: 1});
            return [out, {req: msg.req, res: msg.res, payload: "ok", statusCode: 200}];
        """
        return [
            {"id": "tab", "type": "tab", "label": "bench"},
            {"id": "in", "type": "http in", "z": "tab", "url": "/webhook", "method": "post", "wires": [["fn"]]},
            {
                "id": "fn",
                "type": "function",
                "z": "tab",
                "func": function,
                "outputs": 2,
                "libs": [],
                "wires": [["out"], ["answer"]],
            },
            {"id": "answer", "type": "http response", "z": "tab", "wires": []},
            {
                "id": "out",
                "type": "mqtt out",
                "z": "tab",
                "topic": "",
                "qos": "1",
                "retain": "true",
                "broker": "broker",
                "wires": [],
            },
            {
                "id": "broker",
                "type": "mqtt-broker",
                "broker": "127.0.0.1",
                "port": str(self._broker),
                "clientid": "",
                "autoConnect": True,
                "usetls": False,
                "protocolVersion": "4",
                "keepalive": "60",
                "cleansession": True,
                "birthTopic": "",
                "closeTopic": "",
                "willTopic": "",
            },
        ]


def install_node_red(folder: Path) -> Path:
    """The `node-red` program, installed by npm into this folder if it is not there."""
    program = folder / "node_modules" / ".bin" / "node-red"
    if not program.exists():
        if shutil.which("npm") is None:
            raise SystemExit("npm is missing, which installs Node-RED; on Debian: apt-get install npm")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"node-red@{NODE_RED}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return program


class Bare:
    """A Bottle application on granian that answers 200 at once and does nothing else."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1"]
        command += [
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--blocking-threads",
            "16",
            "--no-ws",
            "--log-level",
            "error",
        ]
        self.process = subprocess.Popen([*command, "tests.bench.bare:application"], start_new_session=True)
        wait_until(lambda: post(self.port) == 200, "the bare application answers")
        return self

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)

    def processes(self) -> dict[str, int]:
        assert self.process is not None
        return {"worker": children(self.process.pid)[-1]}


class MeasuredBridge(Bridge):
    """The bridge as its user runs it: all settings as they come, but for Home Assistant's discovery."""

    def start(self, *, wait: bool = True) -> Self:
        super().start(wait=wait)
        if wait:
            wait_until(lambda: '"connected"' in self.tail(200), "the bridge is connected")
        return self

    def processes(self) -> dict[str, int]:
        assert self.process is not None
        found = {"main": self.process.pid}
        for child in children(self.process.pid):
            if "spawn_main" in command_line(child):
                found["receiver"] = child
        return found


class SinglyBridge(MeasuredBridge):
    """The bridge without group commit."""

    program = ("-c", "from tests.bench.singly import run; run()", "run")


def cpu_seconds(pid: int) -> float:
    """The time that a process' threads have used, in user and system mode; of those that still run."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def resident_bytes(pid: int) -> int:
    """Memory that a process holds, by the share of it that is its own (PSS)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def post(port: int, content: bytes = b'{"statuses":[]}') -> int:
    """The status of the answer; 0 if there was none."""
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            link.sendall(head.encode() + content)
            return int(link.recv(200)[9:12])
    except (OSError, ValueError):
        return 0
