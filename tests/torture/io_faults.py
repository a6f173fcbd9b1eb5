"""Storage that fails at the Nth call, a disk that another program fills, a journal that is as large as it may be.

Promise 1: no false 200. What fails is answered 503 with Retry-After, and the bridge comes back by itself.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw

from bridge.journal import Callback
from bridge.journal.care import prepare
from bridge.journal.sqlite import SqliteJournal
from bridge.model import Kind
from bridge.topics import Entry
from tests.torture.appender import Appender, Order, inconsistencies, stored
from tests.torture.harness import Bridge, Load, Mosquitto, Subscriber, click, ended, status, wait_until

#: What is made to fail: the calls, and how.
FAULTS = {
    "fsync fails (EIO)": ("fdatasync,fsync", "EIO"),
    "no space (ENOSPC)": ("pwrite64", "ENOSPC"),
    "write fails (EIO)": ("pwrite64", "EIO"),
}
#: So many updates are stored in each run, enough for the fault to come in the middle of them.
UPDATES = 60
#: Bytes of the small disk: room for a ballast, and quickly filled.
DISK = 64 * 2**20
#: Seconds until the bridge must be back at work by itself.
BACK = 10.0


def missing_means() -> str | None:
    """What this machine lacks for this campaign, in words; None if nothing."""
    if os.geteuid() != 0:
        return "root"
    for program in ("strace", "mount", "umount"):
        if shutil.which(program) is None:
            return program
    probe = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO:when=1", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "strace that may trace"
    return None


def run(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Fail each of the first `count` calls of each kind, then the faults of the whole bridge; returns the figures."""
    rounds = max(1, count // 30)
    figures: dict[str, object] = dict(calls(folder / "calls", seed=seed, count=count, say=say))
    figures["receiver"] = attached(folder / "attached")
    say(f"a receiver whose storage fails: {figures['receiver']}")
    figures["full disk"] = full_disk(folder / "disk", seed=seed, rounds=rounds)
    say(f"a full disk: {figures['full disk']}")
    figures["full journal"] = full_journal(folder / "journal", seed=seed)
    say(f"a full journal: {figures['full journal']}")
    figures["pruning"] = pruning(folder / "pruning", rounds=rounds)
    say(f"pruning: {figures['pruning']}")
    return figures


# --- the Nth call -------------------------------------------------------------------------------------------------


def calls(folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, dict[str, int]]:
    """Fail the Nth call of each kind, for N from 1 to `count`, once or from then on, in a process like a receiver."""
    folder.mkdir(parents=True, exist_ok=True)
    # A write-ahead log that is about to be brought into the file: faults meet that as well.
    templates = [_template(folder / "fresh.db", 0), _template(folder / "long.db", 985)]
    figures: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, fault in FAULTS.items():
            sums: Counter[str] = Counter()

            def suffer(number: int, name: str = name, fault: tuple[str, str] = fault) -> dict[str, int]:
                chance = random.Random(f"{seed} {name} {number}")
                return _call(folder / f"run{number}", chance.choice(templates), fault, number, chance)

            for outcome in pool.map(suffer, range(1, count + 1)):
                sums.update(outcome)
            say(f"{name}: {dict(sums)}")
            figures[name] = dict(sums)
    return figures


def _call(folder: Path, template: Path, fault: tuple[str, str], number: int, chance: random.Random) -> dict[str, int]:
    """Fail one call; what came of it."""
    which, error = fault
    folder.mkdir()
    journal, trace = folder / "journal.db", folder / "trace"
    _copy(template, journal)
    with SqliteJournal(journal, durable=False):  # the main process has it open as well
        before = stored(journal)
        when = f"{number}{chance.choice(('', '+'))}"
        appender = Appender(
            [
                *("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", str(trace), "-e", f"trace={which}"),
                *("-e", f"inject={which}:error={error}:when={when}"),
            ]
        )
        with appender:
            appender.start(Order(str(journal), 1_000_000, chance.getrandbits(32), updates=UPDATES, requests=3))
            code = appender.wait()
    # SQLite does not mind if the folder of a new log cannot be synced; the journal has done so before.
    faults = [line for line in trace.read_text().splitlines() if "(INJECTED)" in line]
    hit = len([line for line in faults if f"<{folder}>" not in line])
    alarm = prepare(journal)
    lost = (appender.accepted | before) - stored(journal)
    what = f"{error} at call {when}: exit {code}, {hit} faults, {len(appender.refused)} refused\n{appender.log}"
    assert not lost, f"{len(lost)} of {len(appender.accepted)} answered updates are not there: {what}"
    assert alarm is None, f"{alarm}: {what}"
    assert not inconsistencies(journal), f"{inconsistencies(journal)}: {what}"
    assert faults or (code == 0 and not appender.refused), f"without a fault nothing fails: {what}"
    went_on = False
    if hit and error == "EIO":
        # Whoever meets it in the middle of a commit or of a checkpoint ends, and says why.
        assert code == 1, f"the process goes on with a storage that failed: {what}"
        assert "the receiver ends and is started anew" in appender.log, what
    elif hit:
        went_on = not when.endswith("+")
        assert code == 0, f"a full disk is no reason to end: {what}"
        assert not went_on or len(appender.accepted) >= UPDATES - 2 * 3, f"it goes on when there is room: {what}"
    _store_one_more(journal)
    shutil.rmtree(folder)
    return {
        "runs": 1,
        "hit": bool(hit),
        "answered": len(appender.accepted),
        "refused": len(appender.refused),
        "ended_with_a_reason": code == 1,
        "went_on_when_there_was_room": went_on,
        "lost": len(lost),
    }


def _template(path: Path, frames: int) -> Path:
    """A journal whose write-ahead log holds about so many frames; a thousand of them are brought into the file."""
    prepare(path)
    with SqliteJournal(path) as journal:
        db = journal._opened()
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        number = 0
        while frames and _wal(path).stat().st_size < frames * (4096 + 24):
            number += 1
            journal.append([Callback((_entry(number),))])
    return path


def _entry(number: int) -> Entry:
    document = json.dumps({"event_id": f"{number:032x}", "filling": "x" * 1000})
    return Entry(f"{number:032x}", Kind.STATUS, f"m{number}/status", "event/status/sent", 1, number, 1.0, document)


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _copy(template: Path, path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if suffix != "-shm":
                shutil.copyfile(template.with_name(template.name + suffix), path.with_name(path.name + suffix))


def _store_one_more(path: Path) -> None:
    with SqliteJournal(path) as journal:
        (outcome,) = journal.append([Callback((_entry(999_999),))])
    assert outcome.stored == 1, "it stores again"


# --- the whole bridge ---------------------------------------------------------------------------------------------


def attached(folder: Path) -> dict[str, object]:
    """An fsync fails in the receiver of a running bridge: 503, its end with a reason, and a new receiver."""
    broker = Mosquitto(folder / "broker").start()
    bridge = Bridge(folder / "bridge", broker.port)
    with ended(broker, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            assert bridge.post(status("before", "sent")) == 200
            old = bridge.receiver()
            assert old is not None
            inject = "inject=fdatasync,fsync:error=EIO:when=1"
            strace = subprocess.Popen(
                ["strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", inject, "-p", str(old)],
                stderr=subprocess.DEVNULL,
            )
            try:
                wait_until(lambda: _is_traced(old), "strace is attached")
                time.sleep(0.2)  # to all of its threads
                answer, headers = ask(bridge, status("during", "sent"))
                failed_at = time.monotonic()
                assert answer == 503, f"an fsync that failed is answered 503, not {answer}\n{bridge.tail()}"
                assert headers.get("retry-after", "").isdigit(), f"with Retry-After: {headers}"
                wait_until(lambda: bridge.receiver() not in (None, old), f"a new receiver\n{bridge.tail()}", BACK)
            finally:
                strace.terminate()
                strace.wait()
            wait_until(lambda: bridge.post(status("after", "sent")) == 200, f"takes again\n{bridge.tail()}", BACK)
            back = time.monotonic() - failed_at
            assert "the journal's storage failed" in bridge.log.read_text(), (
                f"the reason is in the log\n{bridge.tail()}"
            )
            assert bridge.post(status("during", "sent")) == 200
            wait_until(lambda: {"before", "during", "after"} <= witness.seen, f"all arrives\n{bridge.tail()}")
        assert bridge.stop() == 0
    return {"answer": answer, "retry_after": headers["retry-after"], "seconds_until_200": round(back, 1)}


def _is_traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    return False


def full_disk(folder: Path, *, seed: int, rounds: int) -> dict[str, object]:
    """Another program fills the disk with the journal on it, to the last byte, and makes room again."""
    broker = Mosquitto(folder / "broker").start()
    disk = folder / "disk"
    bridge = Bridge(folder / "bridge", broker.port, settings={"journal.url": f"sqlite://{disk}/journal.db"})
    back: list[float] = []
    refused = 0
    with _small_disk(disk), ended(broker, bridge):
        ballast, hog = disk / "journal.ballast", disk / "hog"
        bridge.start()
        main, receiver = bridge.process, bridge.receiver()
        with Subscriber(broker.port) as witness, Load(bridge, seed, threads=2) as load:
            for number in range(rounds):
                wait_until(ballast.exists, f"the ballast is taken\n{bridge.tail()}", BACK)
                wait_until(lambda: len(load.accepted) > 20, "it stores", 30)
                with _greedy(hog):
                    wait_until(lambda: not ballast.exists(), f"the ballast is given up\n{bridge.tail()}", BACK)
                    wait_until(
                        functools.partial(_is_answered, bridge, status(f"full{number}", "sent"), 503),
                        f"503 when it is full\n{bridge.tail()}",
                        30,
                    )
                    deadline = time.monotonic() + 6
                    while time.monotonic() < deadline:
                        answer, headers = ask(bridge, status(f"full{number}", "sent"))
                        assert answer == 503, f"a full disk is answered 503, not {answer}\n{bridge.tail()}"
                        assert headers.get("retry-after", "").isdigit(), f"with Retry-After: {headers}"
                        refused += 1
                        time.sleep(0.1)
                hog.unlink()
                room = time.monotonic()
                wait_until(
                    functools.partial(_is_answered, bridge, status(f"room{number}", "sent"), 200),
                    f"200 again\n{bridge.tail()}",
                    BACK,
                )
                back.append(time.monotonic() - room)
            wait_until(ballast.exists, f"the ballast is taken again\n{bridge.tail()}", BACK)
            load.__exit__()
            assert bridge.process is main, "the bridge lives through it"
            assert bridge.receiver() == receiver, f"the receiver lives through it\n{bridge.tail()}"
            assert not load.false_answers, f"nothing but 200 and 503 is answered: {load.false_answers}"
            wanted = set(load.accepted)
            wait_until(lambda: wanted <= witness.seen, f"everything arrives\n{bridge.tail()}")
        assert bridge.stop() == 0
        refused_to_start = _start_on_a_full_disk(bridge, disk, hog)
    return {
        "rounds": rounds,
        "answered_200": len(wanted),
        "missing": len(wanted - witness.seen),
        "refused_503": refused + load.refused,
        "longest_until_200_s": round(max(back), 1),
        "start_on_a_full_disk": refused_to_start,
    }


def _start_on_a_full_disk(bridge: Bridge, disk: Path, hog: Path) -> dict[str, str]:
    """Whoever starts a bridge on a full disk finds its journal as it was, and with the ballast it even works."""
    journal = disk / "journal.db"
    before = stored(journal)
    figures = {}
    for ballast in ("with ballast", "without ballast"):
        if ballast == "without ballast":
            (disk / "journal.ballast").unlink(missing_ok=True)
        else:
            assert (disk / "journal.ballast").exists()
        with _greedy(hog):
            time.sleep(1.0)
        bridge.start(wait=False)
        assert bridge.process is not None
        deadline = time.monotonic() + BACK
        answer = 0
        while time.monotonic() < deadline and bridge.process.poll() is None and not answer:
            answer = bridge.post(status("at a full disk", "sent"))
            time.sleep(0.1)
        code = bridge.process.poll()
        figures[ballast] = f"answered {answer}" if answer else f"ended with exit code {code}"
        bridge.end()
        hog.unlink()
        assert not list(disk.glob("*.corrupt-*")), f"a full disk is no damage\n{bridge.tail()}"
        assert answer in (0, 200, 503), f"a full disk is not answered {answer}"
        assert answer or "the disk is full" in bridge.tail(), f"the reason is told\n{bridge.tail()}"
        bridge.start()
        assert bridge.post(status("roomy", "sent")) == 200
        wait_until((disk / "journal.ballast").exists, "the ballast is taken again", BACK)
        assert bridge.stop() == 0
        assert before <= stored(journal), "nothing is lost"
    assert figures["with ballast"].startswith("answered"), f"the ballast makes room for a start: {figures}"
    return figures


@contextlib.contextmanager
def _small_disk(point: Path) -> Iterator[None]:
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(point)], check=True)
    try:
        yield
    finally:
        if subprocess.run(["umount", str(point)], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "-l", str(point)], check=True)


@contextlib.contextmanager
def _greedy(hog: Path) -> Iterator[None]:
    """Another program that takes each byte that becomes free."""
    stop = threading.Event()

    def eat() -> None:
        with hog.open("ab", buffering=0) as file:
            while not stop.is_set():
                for size in (2**20, 4096, 64):
                    with contextlib.suppress(OSError):
                        while not stop.is_set():
                            file.write(b"\0" * size)
                stop.wait(0.02)

    eater = threading.Thread(target=eat, daemon=True)
    eater.start()
    try:
        yield
    finally:
        stop.set()
        eater.join()


def full_journal(folder: Path, *, seed: int) -> dict[str, object]:
    """The broker hangs until the journal is as large as it may be; then it goes on, and all drains."""
    broker = Mosquitto(folder / "broker").start()
    bridge = Bridge(folder / "bridge", broker.port, settings={"journal.max_size": "8MiB", "events.max_age": "off"})
    accepted: set[str] = set()
    with ended(broker, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            broker.freeze()  # not killed: it would forget the witness
            number = 0
            answer, headers = 200, {}
            while answer == 200:
                number += 1
                assert number < 20_000, "the journal takes more than journal.max_size"
                answer, headers = ask(bridge, _large(f"m{number}"))
                if answer == 200:
                    accepted.add(f"m{number}")
            assert answer == 503, f"a full journal is answered 503, not {answer}\n{bridge.tail()}"
            assert headers.get("retry-after", "").isdigit(), f"with Retry-After: {headers}"
            largest = (bridge.state / "journal.db").stat().st_size
            assert largest <= 8 * 2**20, f"the file has {largest} bytes"
            assert "journal.max_size" in bridge.log.read_text(), f"the log says what to change\n{bridge.tail()}"
            broker.thaw()
            start = time.monotonic()
            wait_until(lambda: accepted <= witness.seen, f"the backlog drains\n{bridge.tail()}")
            wait_until(lambda: bridge.post(status("again", "sent")) == 200, f"it takes again\n{bridge.tail()}", BACK)
            back = time.monotonic() - start
            accepted.add("again")
            wait_until(lambda: accepted <= witness.seen, f"everything arrives\n{bridge.tail()}")
        assert bridge.stop() == 0
    return {
        "answered_200": len(accepted),
        "missing": len(accepted - witness.seen),
        "largest_file": largest,
        "seconds_from_broker_back_to_200": round(back, 1),
    }


def pruning(folder: Path, *, rounds: int) -> dict[str, object]:
    """With the broker there, twice as much goes through as the journal may hold, and nothing is refused."""
    broker = Mosquitto(folder / "broker").start()
    bridge = Bridge(folder / "bridge", broker.port, settings={"journal.max_size": "8MiB"})
    answers: dict[int, int] = {}
    total = 2 * rounds * 8 * 2**20 // 3500
    with ended(broker, bridge):
        bridge.start()
        with Subscriber(broker.port) as witness:
            start = time.monotonic()
            for number in range(total):
                # Half of it about few buttons, half about buttons of their own, whose topics would stand for a day.
                body = _large(f"m{number}")
                if number % 2:
                    body["messages"][0]["button"]["payload"] = f"b{number % 20}"
                answer = bridge.post(body)
                answers[answer] = answers.get(answer, 0) + 1
            seconds = time.monotonic() - start
            assert set(answers) == {200}, f"nothing but 200 is answered: {answers}\n{bridge.tail()}"
            wait_until(lambda: len(witness.seen) == total, f"everything arrives\n{bridge.tail()}")
            largest = (bridge.state / "journal.db").stat().st_size
            assert largest <= 8 * 2**20, f"the file has {largest} bytes"
        assert bridge.stop() == 0
    return {
        "posted": total,
        "answers": answers,
        "largest_file": largest,
        "callbacks_a_second": round(total / seconds),
        "missing": total - len(witness.seen),
    }


def _large(name: str) -> dict[str, Any]:
    body = click("large", name)
    body["messages"][0]["button"]["text"] = "x" * 3000
    body["messages"][0]["button"]["payload"] = f"large-{name}"
    return body


def _is_answered(bridge: Bridge, body: dict[str, Any], answer: int) -> bool:
    return bridge.post(body) == answer


def ask(bridge: Bridge, body: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """Post; the answer's status and headers, their names in lower case; (0, {}) if there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    try:
        connection.request("POST", "/webhook", json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()
