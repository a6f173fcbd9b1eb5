"""A settings file of an older version, written anew with today's names; how it was is kept beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from bridge import __version__, config
from bridge.config import ConfigError, Key


@dataclass(frozen=True, slots=True)
class Rename:
    """A name in a settings file that an older version knew.

    Attributes:
        old, new: The setting, then and now.
        start, end: Where the name stands in the text, in characters.
        line: Counted from 1.
    """

    old: Key
    new: Key
    start: int
    end: int
    line: int


def migrate(file: Path) -> tuple[list[Rename], Path | None]:
    """Write a settings file with today's names, everything else in it as it was: values, comments, order.

    Returns:
        What was renamed, and the copy of the file as it was; None if there was nothing to do.

    Raises:
        ConfigError: The file cannot be read, written or used; it is as it was.
    """
    config.load(file, environ={})  # what is wrong with it is told before anything is done
    before = text = file.read_bytes().decode()  # line ends stay as they are
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = list(_outdated(root, ())) if root is not None else []
    moved = [one for one in found if one.old[:-1] != one.new[:-1]]
    if moved:
        raise ConfigError(
            f"{file}:{one.line}: {'.'.join(one.old)}: stands in another section now; move its line there by hand, "
            f"as {'.'.join(one.new)}"
            for one in moved
        )
    if not found:
        return [], None
    for one in reversed(found):
        text = text[: one.start] + one.new[-1] + text[one.end :]
    kept = file.with_name(f"{file.name}.before-{__version__}")
    fresh = file.with_name(f".{file.name}.new")
    try:
        if not kept.exists():  # the first one is how it really was
            _write(kept, before, file)
        _write(fresh, text, file)
        config.load(fresh, environ={})
        fresh.replace(file)
    except OSError as error:
        raise ConfigError(
            [f"{file}: cannot be written anew: {error.strerror}; change the names in it by hand"]
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return found, kept


def _outdated(node: yaml.Node, key: Key) -> Iterator[Rename]:
    """Names of older versions, in the order in which they stand."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, child in node.value:
        below = (*key, str(name.value))
        new = config.RENAMED.get(below)
        if new is not None:
            yield Rename(below, new, name.start_mark.index, name.end_mark.index, name.start_mark.line + 1)
        yield from _outdated(child, new or below)


def _write(path: Path, text: str, like: Path) -> None:
    """Write a file that is on disk when this returns, with the owner and rights of another one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    shutil.copymode(like, path)
