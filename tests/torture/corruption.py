"""The journal's file overwritten at random places, truncated, emptied; then the bridge is started as systemd would.

It must take callbacks again within 10 s, keep the damaged file as it was, raise the alarm, and save what can be saved.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import apsw

from bridge.journal.care import prepare
from tests.torture.appender import inconsistencies, stored
from tests.torture.harness import Bridge, Mosquitto, Subscriber, ended, event_id, status, wait_until

#: Updates in the journal, and how many of them the broker has not acknowledged.
UPDATES, UNSETTLED = 3_000, 300
#: Seconds until callbacks must be taken again.
BACK = 10.0
#: So many more are posted to a journal that was mended, or that is not known to be damaged.
MORE = 20

#: What is summed up over all cases.
FIGURES = ("noticed", "unnoticed", "still_in_the_file", "restarts", "lost_unnoticed")

Damage = Callable[[random.Random, Path], None]


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Damage a journal `count` times; returns the figures."""
    chance = random.Random(seed)
    broker = Mosquitto(folder / "broker").start()
    sums: Counter[str] = Counter()
    longest = 0.0
    by_damage: dict[str, list[int]] = {}
    with ended(broker):
        crashed, unsettled = _crashed(folder / "crashed", broker)
        clean = _clean(folder / "clean", crashed, broker)
        everything = stored(_copy(crashed, folder / "look") / "journal.db")
        damages = itertools.cycle(DAMAGES.items())
        for number in range(count):
            name, damage = next(damages)
            template = clean if name.startswith("in order, ") else crashed
            case = Case(folder / f"case{number}", broker, template, everything, unsettled)
            case.suffer(damage, random.Random(chance.getrandbits(64)))
            figures = case.run()
            longest = max(longest, figures["seconds"])
            sums.update({key: figures[key] for key in FIGURES})
            by_damage.setdefault(name, []).append(figures["saved"])
            say(f"{name}: {figures}")
            shutil.rmtree(case.folder)
    return {
        "damaged": count,
        "updates_in_each": len(everything),
        "longest_until_200_s": round(longest, 1),
        **sums,
        "saved_on_average": round(sum(map(sum, by_damage.values())) / count),
        "saved_by_damage": {name: f"{min(saved)} to {max(saved)}" for name, saved in by_damage.items()},
    }


class Case:
    """One damaged journal and its bridge.

    Args:
        template: A state directory.
        everything: The `event_id` of each update in it.
        unsettled: Message ids of those that the broker does not have.
    """

    def __init__(
        self, folder: Path, broker: Mosquitto, template: Path, everything: set[str], unsettled: set[str]
    ) -> None:
        self.folder = folder
        # Topics of its own: what the one before it left on the broker is not in the way.
        settings = {"mqtt.base_topic": folder.name, "events.max_age": "off"}
        self._bridge = Bridge(folder, broker.port, settings=settings)
        self._broker = broker
        self._everything = everything
        self._unsettled = unsettled
        self._journal = _copy(template, self._bridge.state) / "journal.db"
        self._damaged = b""

    def suffer(self, damage: Damage, chance: random.Random) -> None:
        damage(chance, self._journal)
        self._damaged = self._journal.read_bytes()

    def run(self) -> dict[str, Any]:
        bridge = self._bridge
        with Subscriber(self._broker.port, self.folder.name) as witness, Supervisor(bridge) as supervisor:
            start = time.monotonic()
            wait_until(lambda: bridge.post(status("first", "sent")) == 200, f"it takes callbacks {self._why()}", BACK)
            seconds = time.monotonic() - start
            accepted = {"first"}
            for number in range(MORE):
                body = status(f"more{number}", "sent")
                deadline = time.monotonic() + BACK
                while bridge.post(body) != 200:
                    assert time.monotonic() < deadline, f"it goes on taking callbacks {self._why()}"
                    time.sleep(0.05)
                accepted.add(f"more{number}")
            wait_until(lambda: accepted <= witness.seen, f"what is accepted arrives {self._why()}", 20)
            aside = [
                path for path in bridge.state.glob("journal.db.corrupt-*") if not path.name.endswith(("-wal", "-shm"))
            ]
            if aside:
                wait_until(lambda: _is_alarmed(witness), f"the alarm is raised {self._why()}", BACK)
                assert "the journal was damaged" in bridge.log.read_text(), f"the log tells {self._why()}"
                # A file that was in order when it was closed may have been used for a while.
                if not supervisor.restarts:
                    assert self._damaged in (path.read_bytes() for path in aside), f"it is kept {self._why()}"
            there = (stored(self._journal) if aside else _readable(self._journal)) & self._everything
            wanted = {name for name in self._unsettled if event_id(_update(name)) in there}
            wait_until(lambda: wanted <= witness.seen, f"what was saved arrives {self._why()}", 20)
            code = supervisor.stop()
            assert code == 0, f"it stops in order, not with {code} {self._why()}"
        assert prepare(self._journal) is None, "the journal is in order"
        lost = len(self._everything) - len(there)
        return {
            "noticed": bool(aside),
            "unnoticed": not aside,
            "still_in_the_file": not aside and bool(inconsistencies(self._journal)),
            "restarts": supervisor.restarts,
            "saved": len(there),
            "lost_unnoticed": 0 if aside else lost,
            "unsettled_published": len(wanted),
            "seconds": round(seconds, 2),
        }

    def _why(self) -> str:
        return f"({self.folder.name})\n{self._bridge.tail()}"


def _readable(journal: Path) -> set[str]:
    """The `event_id` of every update that can be read, where there may be damage that nobody has met yet."""
    found: set[str] = set()
    with contextlib.closing(apsw.Connection(str(journal), flags=apsw.SQLITE_OPEN_READWRITE)) as db:
        for number in range(1, int(db.execute("SELECT max(seq) FROM updates").get) + 1):
            with contextlib.suppress(apsw.CorruptError):
                rows = db.execute("SELECT lower(hex(event_id)) FROM updates WHERE seq = ?", (number,))
                found.update(identity for (identity,) in rows)
    return found


def _is_alarmed(witness: Subscriber) -> bool:
    return any("damaged" in alarm for alarm in witness.states.get("bridge/health", {}).get("alarms", []))


class Supervisor:
    """Starts a bridge, and starts it anew whenever it ends by itself, as systemd would."""

    def __init__(self, bridge: Bridge) -> None:
        self.restarts = 0
        self._bridge = bridge
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._bridge.start(wait=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._bridge.end()

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        return self._bridge.stop()

    def _watch(self) -> None:
        while not self._stopping.wait(0.05):
            process = self._bridge.process
            if process is not None and process.poll() is not None:
                self.restarts += 1
                self._stopping.wait(0.1)
                self._bridge.start(wait=False)


# --- what it starts from ------------------------------------------------------------------------------------------


def _crashed(folder: Path, broker: Mosquitto) -> tuple[Path, set[str]]:
    """The state of a bridge that was killed with a long write-ahead log and a backlog; the backlog's message ids."""
    bridge = Bridge(folder, broker.port)
    names = [f"m{number}" for number in range(UPDATES)]
    settled, unsettled = names[:-UNSETTLED], names[-UNSETTLED:]
    with ended(bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            _post(bridge, settled)
            wait_until(lambda: witness.seen >= set(settled), "the broker has what came first")
            time.sleep(0.5)
            broker.freeze()
            try:
                _post(bridge, unsettled)
                receiver = bridge.receiver()
                assert receiver is not None
                assert bridge.process is not None
                # At once: a receiver that had the time would close the journal in order.
                os.kill(receiver, signal.SIGSTOP)
                os.kill(bridge.process.pid, signal.SIGKILL)
                os.kill(receiver, signal.SIGKILL)
                bridge.process.wait()
            finally:
                broker.thaw()
    log = bridge.state / "journal.db-wal"
    assert log.stat().st_size > 10_000, "it leaves a write-ahead log"
    return bridge.state, set(unsettled)


def _clean(folder: Path, crashed: Path, broker: Mosquitto) -> Path:
    """The same, started and stopped in order while the broker hangs."""
    bridge = Bridge(folder, broker.port)
    _copy(crashed, bridge.state)
    broker.freeze()
    try:
        with ended(bridge):
            bridge.start()
            assert bridge.stop() == 0
    finally:
        broker.thaw()
    return bridge.state


def _update(name: str) -> dict[str, Any]:
    # As long as one of WhatsApp's.
    body = status(name, "sent", 1_767_300_000)
    body["statuses"][0]["conversation"] = {"id": "c" * 300}
    return body


def _post(bridge: Bridge, names: list[str]) -> None:
    for start in range(0, len(names), 25):
        body = {"statuses": [_update(name)["statuses"][0] for name in names[start : start + 25]]}
        assert bridge.post(body) == 200, json.dumps(body)


def _copy(template: Path, state: Path) -> Path:
    state.parent.mkdir(parents=True, exist_ok=True)
    # Its sockets are not copied.
    shutil.copytree(template, state, ignore=lambda _, names: [name for name in names if name.endswith(".bell")])
    return state


# --- damage ---------------------------------------------------------------------------------------------------------


def _overwrite(chance: random.Random, path: Path, *, most: int = 20, within: int | None = None) -> None:
    size = path.stat().st_size if within is None else within
    with path.open("r+b") as file:
        content = path.read_bytes()
        for _ in range(chance.randint(1, most)):
            length = min(int(2 ** chance.uniform(0, 14)), size)
            place = chance.randrange(size - length + 1)
            elsewhere = chance.randrange(len(content))
            file.seek(place)
            file.write(
                chance.choice(
                    (
                        chance.randbytes(length),
                        b"\0" * length,
                        b"\xff" * length,
                        (content[elsewhere:] + content)[:length],  # as when a card mixes up its blocks
                    )
                )
            )


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _in_places(chance: random.Random, path: Path) -> None:
    _overwrite(chance, path)


def _in_the_header(chance: random.Random, path: Path) -> None:
    _overwrite(chance, path, most=3, within=100)


def _on_page_1(chance: random.Random, path: Path) -> None:
    with path.open("r+b") as file:
        file.write(chance.choice((b"\0" * 4096, chance.randbytes(4096))))


def _in_the_log(chance: random.Random, path: Path) -> None:
    _overwrite(chance, _log(path))


def _in_both(chance: random.Random, path: Path) -> None:
    _overwrite(chance, path)
    _overwrite(chance, _log(path))


def _log_header(chance: random.Random, path: Path) -> None:
    with _log(path).open("r+b") as file:
        file.write(chance.randbytes(chance.choice((32, 512, 4096))))


def _cut(chance: random.Random, path: Path) -> None:
    os.truncate(path, chance.randrange(1, path.stat().st_size))


def _cut_without_log(chance: random.Random, path: Path) -> None:
    _cut(chance, path)
    _log(path).unlink()


def _emptied(_: random.Random, path: Path) -> None:
    os.truncate(path, 0)


def _emptied_without_log(_: random.Random, path: Path) -> None:
    os.truncate(path, 0)
    _log(path).unlink()


def _log_cut(chance: random.Random, path: Path) -> None:
    os.truncate(_log(path), chance.randrange(_log(path).stat().st_size))


def _in_an_index(chance: random.Random, path: Path) -> None:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(db):
        rows = db.execute("SELECT pageno FROM dbstat WHERE name LIKE 'sqlite_autoindex%' OR name = 'ledger'")
        pages = [page for (page,) in rows]
    with path.open("r+b") as file:
        for page in chance.sample(pages, min(len(pages), chance.randint(1, 5))):
            file.seek((page - 1) * 4096)
            file.write(chance.randbytes(4096))


#: Each in turn. What begins with `in order` was closed as it should be, so nothing looks for damage at the start.
DAMAGES: dict[str, Damage] = {
    "places": _in_places,
    "header": _in_the_header,
    "page 1": _on_page_1,
    "log": _in_the_log,
    "both": _in_both,
    "log's header": _log_header,
    "cut": _cut,
    "cut, no log": _cut_without_log,
    "emptied": _emptied,
    "emptied, no log": _emptied_without_log,
    "log cut": _log_cut,
    "in order, places": _in_places,
    "in order, page 1": _on_page_1,
    "in order, index": _in_an_index,
    "in order, cut": _cut,
}
