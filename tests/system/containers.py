"""A container of a compose file as a process: bwrap gives it the root, the user and the folders that Docker would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system.support import Program, program


def unescaped(text: str) -> str:
    """As Compose hands it on: `$$` is `$`, and there is no other `$` in it."""
    assert "$" not in text.replace("$$", ""), "Compose would look for a variable"
    return text.replace("$$", "$")


def start(
    service: dict[str, Any],
    folder: Path,
    here: Callable[[str], str],
    *,
    user: int,
    program_of: Path,
    **environment: str,
) -> Program:
    """Start what a service of a compose file starts; its root cannot be written, and it has no capabilities.

    Args:
        service: As it stands in the file.
        folder: Where `secrets` are, and its volumes are made.
        here: What becomes of its addresses and ports, which are this machine's.
        user: That of the image, or of the file where it names one.
        program_of: The program that it starts, which may stand apart from the system's.
        environment: What Docker adds.
    """
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    command = [program("bwrap"), "--die-with-parent", "--unshare-user", "--uid", user, "--gid", user]
    command += ["--cap-drop", "ALL", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--proc", "/proc"]
    command += [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    command += ["--dev", "/dev", "--ro-bind", program_of.parent, program_of.parent]
    for secret in service.get("secrets", []):
        command += ["--ro-bind", folder / "secrets" / secret, f"/run/secrets/{secret}"]
    for mount in service.get("tmpfs", []):
        place, _, words = mount.partition(":")
        options = dict(word.split("=") for word in words.split(",") if word)
        assert {options.get("uid", str(user)), options.get("gid", str(user))} == {str(user)}, "not its own"
        command += ["--perms", options.get("mode", "1777"), "--tmpfs", place]
    for volume in service.get("volumes", []):
        name, _, place = volume.partition(":")
        (folder / name).mkdir(exist_ok=True)
        command += ["--bind", folder / name, place]
    command += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", "/", "--"]
    command += [here(unescaped(word)) for word in (*service.get("entrypoint", []), *service["command"])]
    settings = {name: here(unescaped(value)) for name, value in service.get("environment", {}).items()}
    path = f"{program_of.parent}:{os.environ['PATH']}"
    return Program(command, folder, {"PATH": path, **environment, **settings})
