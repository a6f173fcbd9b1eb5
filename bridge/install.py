"""The bridge as a service of systemd: what `install-service` writes, does and takes away.

The unit files are those of the folder `systemd/`, brought along in the package; only what this machine decides is
filled in: which program it is and where it stands, and where the webhook listens. The program stays where pip or pipx
put it, so that `pipx upgrade` and `install-service` again upgrade the service: another program makes another unit, and
so a restart. If it stands in a home directory, which the service does not see, the program alone is let in.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from bridge import __version__, drop_in
from bridge.config import ENV_PREFIX, load

UNITS = ("whatsapp2mqtt.socket", "whatsapp2mqtt.service")
UNIT_FOLDER = Path("/etc/systemd/system")
SETTINGS = Path("/etc/whatsapp2mqtt/config.yaml")
STATE = Path("/var/lib/whatsapp2mqtt")
#: The command with the service's settings and journal, for root.
WRAPPER = Path("/usr/local/sbin/whatsapp2mqtt-service")

FIRST_SETTINGS = """\
# The settings of the service whatsapp2mqtt. What is not set has its default; {example} shows all.
# Afterwards: whatsapp2mqtt-service check && systemctl restart whatsapp2mqtt
"""

WRAPPER_TEXT = """\
#!/bin/sh
# whatsapp2mqtt with the settings and the journal of the service: `whatsapp2mqtt-service dead-letters list`, as root.
exec {program} as-service -- "$@"
"""


class InstallError(Exception):
    """The service cannot be installed here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that is to be as it stands here."""

    path: Path
    text: str
    mode: int

    def is_there(self) -> bool:
        """Whether it is so already."""
        try:
            found = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return found == self.text and stat.S_IMODE(self.path.stat().st_mode) == self.mode

    def write(self) -> None:
        """Put it there, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        fresh = self.path.with_name(f".{self.path.name}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(self.text)
        fresh.chmod(self.mode)
        fresh.replace(self.path)


@dataclass(frozen=True, slots=True)
class Program:
    """The installed program.

    Attributes:
        command: The script `whatsapp2mqtt`.
        folders: All that it is made of: its virtual environment, and the Python below that.
        build: Its version, and what tells it from another one of the same version.
    """

    command: Path
    folders: tuple[Path, ...]
    build: str


@dataclass(frozen=True, slots=True)
class System:
    """The machine that it is installed on; tests have one of their own.

    Attributes:
        root: What stands before every path that is written.
        run: Runs a command, and raises `InstallError` if it fails.
        variables: Asks for the bridge's variables that systemd gives the service, and raises `DropInError`.
        is_running: Whether systemd runs there.
        is_root: Whether this process may write there.
    """

    root: Path
    run: Callable[[Sequence[str]], None]
    variables: Callable[[], Mapping[str, str]]
    is_running: bool
    is_root: bool

    def at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")


def this_system() -> System:
    """The machine that this process runs on."""
    return System(Path("/"), _run, drop_in.variables, Path("/run/systemd/system").is_dir(), os.geteuid() == 0)


def this_program() -> Program:
    """The program that runs just now.

    Raises:
        InstallError: It has no command of its own, or only its owner can read it.
    """
    command = Path(sys.prefix) / "bin" / "whatsapp2mqtt"
    if not command.exists():
        raise InstallError(
            f"there is no {command}; install the package into a virtual environment, e.g. `pipx install "
            "'whatsapp2mqtt[embedded]'`, and run install-service from there"
        )
    package = Path(__file__).resolve().parent
    folders = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    # A package that is edited in place stands outside of its environment.
    folders |= {package.parent} if not package.is_relative_to(sys.prefix) else set()
    unreadable = next(
        (
            one
            for one in (Path(sys.prefix), command, package, package / "cli" / "__init__.py")
            if not one.stat().st_mode & stat.S_IROTH
        ),
        None,
    )
    if unreadable:
        raise InstallError(
            f"{unreadable} can be read by its owner only, and the service runs as a user of its own; "
            f"let others read it: chmod -R o+rX {shlex.quote(sys.prefix)}"
        )
    return Program(command, tuple(sorted(folders)), f"{__version__}, {_fingerprint()}")


def _fingerprint() -> str:
    """What changes with any file of any installed package: a clone of today may have the version of yesterday's."""
    installed = distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    records = {one.read_text("RECORD") or f"{one.name} {one.version}" for one in installed}
    return hashlib.sha256("\0".join(sorted(records)).encode()).hexdigest()[:12]


def install(system: System, program: Program, say: Callable[[str], None], *, dry_run: bool = False) -> None:
    """Write what is missing or different, and start the service, or start it anew if it changed.

    Args:
        system: Where.
        program: What the service runs.
        say: Told each step, in words.
        dry_run: Only say what would be done.

    Raises:
        InstallError: It cannot be installed here.
        ConfigError: The settings that are there already cannot be used.
    """
    _refuse(system, dry_run=dry_run)
    listen = _listen(system, say)
    changed = [one for one in files(system, program, listen) if not one.is_there()]
    for one in changed:
        say(f"{'would write' if dry_run else 'write'} {one.path}")
        if dry_run:
            say("".join(f"    {line}\n" for line in one.text.splitlines()).rstrip())
        else:
            one.write()
    units = [one for one in changed if one.path.name in UNITS]
    steps = [["systemctl", "daemon-reload"]] if units else []
    if any(one.path.name.endswith(".socket") for one in units):
        # Another address: the socket that is open has the old one.
        steps.append(["systemctl", "stop", *UNITS])
    steps.append(["systemctl", "enable", "--quiet", *UNITS])
    steps.append(["systemctl", "restart" if units else "start", "whatsapp2mqtt.service"])
    _do(system, steps, say, dry_run=dry_run)
    if not changed and not dry_run:
        say("everything was as it should be")


def uninstall(system: System, say: Callable[[str], None], *, dry_run: bool = False) -> None:
    """Stop the service and remove it; settings and state stay, and it is said where.

    Raises:
        InstallError: It cannot be done here.
    """
    _refuse(system, dry_run=dry_run)
    there = [system.at(UNIT_FOLDER / name) for name in UNITS if system.at(UNIT_FOLDER / name).exists()]
    wrapper = system.at(WRAPPER)
    if there:
        _do(system, [["systemctl", "disable", "--quiet", "--now", *UNITS]], say, dry_run=dry_run)
    for path in (*there, *([wrapper] if wrapper.exists() else [])):
        say(f"{'would remove' if dry_run else 'remove'} {path}")
        if not dry_run:
            path.unlink()
    if there:
        _do(system, [["systemctl", "daemon-reload"]], say, dry_run=dry_run)
    else:
        say("there is no service whatsapp2mqtt")
    kept = [
        path for path in (SETTINGS.parent, STATE, Path("/var/lib/private") / STATE.name) if system.at(path).exists()
    ]
    if kept:
        say(f"settings and state stay; to delete them for good: rm -r {' '.join(map(str, kept))}")


def files(system: System, program: Program, listen: str) -> Iterator[File]:
    """All that is to be there."""
    settings = system.at(SETTINGS)
    if not settings.exists():
        yield File(settings, FIRST_SETTINGS.format(example=brought("config.example.yaml")), 0o600)
    yield File(system.at(UNIT_FOLDER / "whatsapp2mqtt.socket"), socket_unit(listen), 0o644)
    yield File(system.at(UNIT_FOLDER / "whatsapp2mqtt.service"), service_unit(program), 0o644)
    command = shlex.quote(str(program.command))
    yield File(system.at(WRAPPER), WRAPPER_TEXT.format(program=command), 0o755)


def socket_unit(listen: str) -> str:
    """The socket unit for a webhook that listens there."""
    return re.sub(r"(?m)^ListenStream=.*$", f"ListenStream={listen}", template("whatsapp2mqtt.socket"))


def service_unit(program: Program) -> str:
    """The service unit for this program."""
    unit = template("whatsapp2mqtt.service")
    unit = re.sub(r"(?m)^# Program: .*$", f"# Program: whatsapp2mqtt {program.build}", unit)
    unit = re.sub(r"(?m)^ExecStart=\S+", lambda _: f"ExecStart={_quoted(program.command)}", unit)
    hidden = [one for one in program.folders if _is_hidden(one)]
    if hidden:
        lets_in = "".join(f"BindReadOnlyPaths={_quoted(one)}\n" for one in hidden)
        about = "# The program stands in a folder that is hidden: it alone is let in.\n"
        unit = unit.replace("ProtectHome=tmpfs\n", f"ProtectHome=tmpfs\n{about}{lets_in}")
    return unit


def template(name: str) -> str:
    """A unit file as it stands in the folder `systemd/`."""
    return brought(f"systemd/{name}").read_text(encoding="utf-8")


def brought(name: str) -> Path:
    """A file that came along: in the package, or in the repository where that is edited in place."""
    package = Path(__file__).resolve().parent
    in_package = package / name.replace("systemd/", "units/")
    return in_package if in_package.exists() else package.parent / name


def _is_hidden(folder: Path) -> bool:
    """Whether ProtectHome= or PrivateTmp= hides it."""
    return any(folder.is_relative_to(one) for one in ("/home", "/root", "/run/user", "/tmp", "/var/tmp"))  # noqa: S108


def _quoted(path: Path) -> str:
    """A path as it stands in a unit file (systemd.syntax(7)): % begins a specifier, $ a variable."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if re.search(r"[\s\"'\\;]", text) else text


def _listen(system: System, say: Callable[[str], None]) -> str:
    """Where the service will listen, as its settings file or its variables say."""
    variables: Mapping[str, str] = {}
    if system.is_running:
        try:
            variables = system.variables()
        except drop_in.DropInError as error:
            say(f"{drop_in.UNKNOWN}: {error}")
    settings = system.at(SETTINGS)
    environ = {name: value for name, value in variables.items() if name == f"{ENV_PREFIX}WEBHOOK__LISTEN"}
    # Whether it fits together with secrets that only the service is given, its start says.
    loaded = load(settings if settings.exists() else None, environ, is_whole=False)
    return str(loaded.settings.webhook.listen)


def _refuse(system: System, *, dry_run: bool) -> None:
    if dry_run:
        return
    if not system.is_running:
        raise InstallError(
            "systemd does not run here; start `whatsapp2mqtt run` by what does, see docs/installation.md"
        )
    if not system.is_root:
        raise InstallError(f"only root may install a service: sudo {shlex.quote(sys.argv[0])} install-service")


def _do(system: System, steps: Sequence[Sequence[str]], say: Callable[[str], None], *, dry_run: bool) -> None:
    for step in steps:
        say(f"{'would run ' if dry_run else ''}{shlex.join(step)}")
        if not dry_run:
            system.run(step)


def _run(command: Sequence[str]) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (systemctl)
    except OSError as error:
        raise InstallError(f"{command[0]}: {error.strerror}") from error
    if ended.returncode:
        raise InstallError(
            f"{shlex.join(command)} failed: {ended.stderr.strip() or ended.returncode}; "
            "`journalctl -u whatsapp2mqtt -n 20` says what the bridge said"
        )
