"""The power goes while callbacks are stored, on a card with a volatile cache.

The card is a file in a FUSE file system of our own, behind a loop device with ext4 on it. What is written to it goes to
a volatile layer; a flush makes all of it durable. At the cut, each sector that was not flushed survives by a coin.
Then the file system replays its journal, and the bridge's journal is opened as at a start.

Promise 1: what was answered is there. The control runs the same without fsync (`synchronous=NORMAL`), and must lose.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import apsw

from bridge.journal import JournalError
from bridge.journal.care import prepare
from bridge.journal.sqlite import SqliteJournal
from tests.torture.appender import ROOT, Appender, Order, inconsistencies, stored

SECTOR = 512
IMAGE = 24 * 2**20
#: A card that is fuller than this is replaced by a fresh one.
WORN = 10 * 2**20
#: Seconds that a flush takes, as on a card: most cuts come while one is under way.
FLUSH = 0.004
#: Control cuts, in which something must be lost, for so many others.
CONTROL_SHARE = 5


def missing_means() -> str | None:
    """What this machine lacks for this campaign, in words; None if nothing."""
    if os.geteuid() != 0:
        return "root"
    if not Path("/dev/fuse").exists():
        return "/dev/fuse"
    if not Path("/dev/loop-control").exists():
        return "loop devices"
    for program in ("mkfs.ext4", "losetup", "mount", "umount"):
        if shutil.which(program) is None:
            return program
    check = [sys.executable, "-W", "ignore", "-c", "import fuse"]
    if subprocess.run(check, capture_output=True, check=False).returncode != 0:
        return "libfuse 2 and the package fusepy"
    return None


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Cut the power `count` times, and a fifth as often in the control; returns the figures."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    blank = folder / "blank.img"
    _make_card(blank, folder / "mount")
    start = time.monotonic()
    with Card(folder) as card:
        figures = _cuts(card, blank, chance, count, durable=True, say=say)
        control = _cuts(card, blank, chance, max(6, count // CONTROL_SHARE), durable=False, say=say)
    assert figures["lost"] == 0, f"{figures['lost']} answered updates were lost"
    assert int(str(control["lost"])) > 0, "without fsync nothing was lost either: this test shows nothing"
    return {
        **figures,
        "control_cuts": control["cuts"],
        "control_cuts_that_lost": control["cuts_that_lost"],
        "control_answered": control["answered"],
        "control_lost": control["lost"],
        "seconds": round(time.monotonic() - start),
    }


def _cuts(
    card: Card, blank: Path, chance: random.Random, count: int, *, durable: bool, say: Callable[[str], None]
) -> dict[str, object]:
    answered: set[str] = set()
    total = lost = losing = first = replayed = torn = 0
    survivors = blank
    upcoming = Appender()
    try:
        for number in range(count):
            appender, upcoming = upcoming, Appender()
            with appender:
                card.insert(survivors)
                with card.mounted() as mount:
                    order = Order(
                        str(mount / "journal.db"), first, chance.getrandbits(32), durable=durable, publisher=durable
                    )
                    appender.start(order)
                    assert appender.first_answer.wait(30), f"the appender stores\n{appender.log}"
                    time.sleep(chance.uniform(0.0, 0.4))
                    survivors = card.cut(chance.getrandbits(32))
                    torn += card.torn
                    appender.kill()
            first += 1_000_000
            now = set(appender.accepted)
            answered |= now
            total += len(now)
            with _mounted_image(survivors, card.folder / "mount") as mount:
                journal = mount / "journal.db"
                replayed += (mount / "journal.db-wal").stat().st_size > 0 if (mount / "journal.db-wal").exists() else 0
                found: set[str] = set()
                try:
                    alarm = prepare(journal)
                    found = stored(journal)
                    with SqliteJournal(journal) as opened:
                        opened.settled()
                except (JournalError, apsw.Error) as error:
                    alarm = str(error)  # a control may have lost the end of its file
                assert alarm is None or not durable, f"cut {number}: {alarm}"
                if durable:
                    wrong = inconsistencies(journal)
                    assert not wrong, f"cut {number}: {wrong}"
                gone = answered - found
                lost += len(gone)
                losing += bool(gone)
                size = sum(file.stat().st_size for file in mount.iterdir() if file.is_file())
            if gone or size > WORN or chance.random() < 0.2:
                # What a control lost is lost once, not again at each cut.
                survivors, answered = blank, set()
            if number % 50 == 49:
                say(f"{number + 1} cuts {'with' if durable else 'without'} fsync, {total} answered, {lost} lost")
    finally:
        upcoming.kill()
    return {
        "cuts": count,
        "answered": total,
        "lost": lost,
        "cuts_that_lost": losing,
        "write_ahead_logs_replayed": replayed,
        "unflushed_sectors_at_the_cuts": torn,
    }


# --- the card ---------------------------------------------------------------------------------------------------


class Card:
    """The card with its cache, served by a process of its own; pulled out and its mounts undone by `with`.

    Attributes:
        torn: How many sectors were not flushed at the last cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.torn = 0
        self._point = folder / "fuse"
        self._loop = ""

    def __enter__(self) -> Self:
        self._point.mkdir(exist_ok=True)
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.torture.power_cut", str(self._point)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 20
        while not (self._point / "card").exists():
            assert self._server.poll() is None, "the FUSE file system ended"
            assert time.monotonic() < deadline, "the FUSE file system is there"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", "-l", str(self._point), check=False)
        self._server.kill()
        self._server.wait()
        for stream in (self._server.stdin, self._server.stdout):
            if stream is not None:
                stream.close()

    def insert(self, image: Path) -> None:
        """Take these contents, all of them durable."""
        self._ask("insert", image)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The card's file system, as a computer sees it."""
        mount = self.folder / "mount"
        device = _run("losetup", "--find", "--show", str(self._point / "card"))
        try:
            _run("mount", "-t", "ext4", "-o", "errors=continue", device, str(mount))
            try:
                yield mount
            finally:
                _unmount(mount)
        finally:
            _run("losetup", "--detach", device)

    def cut(self, seed: int) -> Path:
        """Cut the power: nothing more is written; what is left of it on the card."""
        survivors = self.folder / "survivors.img"
        self.torn = int(self._ask("cut", seed, survivors))
        return survivors

    def _ask(self, *words: object) -> str:
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(" ".join(map(str, words)) + "\n")
        stdin.flush()
        return stdout.readline().strip()


def _make_card(image: Path, mount: Path) -> None:
    """An ext4 file system with an empty journal in it."""
    mount.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(IMAGE)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    with _mounted_image(image, mount) as place:
        assert prepare(place / "journal.db") is None


@contextlib.contextmanager
def _mounted_image(image: Path, mount: Path) -> Iterator[Path]:
    _run("mount", "-t", "ext4", "-o", "loop", str(image), str(mount))
    try:
        yield mount
    finally:
        _unmount(mount)


def _unmount(mount: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", str(mount)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    _run("umount", "-l", str(mount))


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout.strip()


# --- the process that is the card -------------------------------------------------------------------------------


class Cache:
    """What the card's controller holds: durable sectors, and a volatile layer over them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stable = bytearray(IMAGE)  # what a cut leaves
        self._seen = bytearray(IMAGE)  # what a reader sees
        self._unflushed: set[int] = set()
        self._is_dead = False

    def insert(self, image: Path) -> None:
        with self._lock:
            self._stable[:] = image.read_bytes()
            self._seen[:] = self._stable
            self._unflushed.clear()
            self._is_dead = False

    def read(self, size: int, offset: int) -> bytes:
        with self._lock:
            return bytes(self._seen[offset : offset + size])

    def write(self, data: bytes, offset: int) -> int:
        with self._lock:
            self._check_power()
            self._seen[offset : offset + len(data)] = data
            self._unflushed.update(range(offset // SECTOR, (offset + len(data) + SECTOR - 1) // SECTOR))
            return len(data)

    def flush(self) -> None:
        """The barrier: all that was written before is durable when this returns."""
        time.sleep(FLUSH)
        with self._lock:
            self._check_power()
            self._keep(self._unflushed)
            self._unflushed.clear()

    def cut(self, seed: int, survivors: Path) -> int:
        chance = random.Random(seed)
        with self._lock:
            self._is_dead = True
            unflushed = sorted(self._unflushed)
            self._keep(sector for sector in unflushed if chance.random() < 0.5)
            survivors.write_bytes(self._stable)
            return len(unflushed)

    def _keep(self, sectors: Any) -> None:
        for sector in sectors:
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            self._stable[place] = self._seen[place]

    def _check_power(self) -> None:
        if self._is_dead:
            raise OSError(errno.EIO, "the power is cut")


def _serve(point: str) -> None:
    """Be the file system, until standard input ends."""
    import fuse

    cache = Cache()

    class Files(fuse.Operations):  # type: ignore[misc]
        """One file, `card`."""

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path != "/card":
                raise fuse.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": IMAGE}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", "card"]

        def open(self, path: str, flags: int) -> int:
            return 1

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return cache.read(size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            with _as_fuse_says(fuse):
                return cache.write(data, offset)

        def fsync(self, path: str, datasync: bool, fh: int) -> int:
            with _as_fuse_says(fuse):
                cache.flush()
            return 0

    def obey() -> None:
        for line in sys.stdin:
            word, *rest = line.split()
            if word == "insert":
                cache.insert(Path(rest[0]))
                print("inserted", flush=True)
            else:
                print(cache.cut(int(rest[0]), Path(rest[1])), flush=True)
        subprocess.run(["umount", "-l", point], capture_output=True, check=False)
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    fuse.FUSE(Files(), point, foreground=True, nothreads=True, big_writes=True, fsname="card")


@contextlib.contextmanager
def _as_fuse_says(fuse: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fuse.FuseOSError(error.errno) from error


if __name__ == "__main__":
    _serve(sys.argv[1])
