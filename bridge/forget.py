"""Every trace of a person or a message taken away: from the bridge's memory, the broker, and the journal.

The order matters: first nothing puts a topic back any more, then the broker lets go of it, then the journal forgets it.
A crash in between leaves what is found again when it is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from bridge.clean import CleanError, Findings, remove, sweep
from bridge.config import Settings, state_directory
from bridge.homeassistant import Plan, trigger_topic
from bridge.journal import Household, NotStoredError, Traces
from bridge.running import NotRunningError, ask
from bridge.secret import veils_of
from bridge.topics import BRIDGE_HEALTH
from bridge.traces import Wanted

#: Seconds that the running bridge has to publish what waits.
PATIENCE = 15.0
#: Seconds that the embedded broker has to write its files anew.
SWEEP_PATIENCE = 3.0
#: Bytes of a file that are looked through at once, and that two slices share.
SLICE, OVERLAP = 4 * 2**20, 8_192


class ForgetError(Exception):
    """Nothing, or not everything, was forgotten; the message says why and what to do."""


@dataclass(slots=True)
class Report:
    """What was found, and what became of it.

    Attributes:
        traces: In the journal.
        topics: Full retained topics.
        removed: Whether all of that is gone.
        left: Files in which it still stands.
        in_broker: The embedded broker's folder, if a file in it has bytes of it left.
    """

    traces: Traces
    topics: list[str] = field(default_factory=list)
    removed: bool = False
    left: list[Path] = field(default_factory=list)
    in_broker: Path | None = None

    @property
    def is_empty(self) -> bool:
        return self.traces == Traces() and not self.topics


def forget(
    settings: Settings,
    plan: Plan,
    journal: Household,
    given: str,
    *,
    dry_run: bool,
    on_removed: Callable[[int], None] = lambda _: None,
) -> Report:
    """Find every trace, and take it away.

    Args:
        settings: Of the bridge, which may run.
        plan: What Home Assistant is told by it.
        journal: Its journal, open.
        given: A number with its country code, or the id of a message.
        dry_run: Only find.
        on_removed: Told how many more topics are gone.

    Raises:
        WantedError: Nobody can be meant by this.
        ForgetError: Not everything could be taken away.
    """
    wanted = Wanted(given, veils_of())
    if not dry_run:
        _await_settled(settings, journal)
    traces = _find(journal, plan, wanted)
    base = settings.mqtt.base_topic
    report = Report(traces, [*(f"{base}/{topic}" for topic in traces.topics), *traces.discoveries])
    if traces.failure:
        report.topics.append(f"{base}/{BRIDGE_HEALTH}")  # a bridge that runs writes it anew
    if dry_run:
        _look_beside(settings, report, wanted)
        return report
    if report.is_empty:
        return _swept(settings, report, wanted)
    try:
        _have_it_forgotten(settings, traces)
        journal.withhold(traces.topics)
        remove(settings, Findings(tuple(report.topics), (), ()), on_removed)
    except CleanError as error:
        raise ForgetError(
            f"{error}; the journal forgets nothing before the broker has let go of {len(report.topics)} "
            "retained topics: try again when it can be reached"
        ) from error
    except NotStoredError as error:
        raise ForgetError(str(error)) from error
    try:
        journal.erase(traces)
        journal.scrub()
    except NotStoredError as error:
        raise ForgetError(f"{error}; it is not sure that nothing is left in the file: try again") from error
    report.removed = True
    return _swept(settings, report, wanted)


def _await_settled(settings: Settings, journal: Household) -> None:
    """Until a bridge that runs has nothing of it in its memory any more, which it would publish afterwards."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            _, found = ask(settings, "api/status")
        except NotRunningError:
            return
        if found["broker"]["state"] == "ok" and journal.backlog() == 0:
            return
        if time.monotonic() > deadline:
            raise ForgetError(
                "the bridge runs, and holds updates in its memory that its broker did not take yet; bring the broker "
                "back, or stop the bridge, and try again"
            )
        time.sleep(0.2)


def _have_it_forgotten(settings: Settings, traces: Traces) -> None:
    """Have a bridge that runs forget callbacks that it could still show, and names that it would tell once more."""
    try:
        code, answer = ask(settings, "api/forget", {"learned": traces.learned})
    except NotRunningError:
        return
    if code != HTTPStatus.OK:
        raise ForgetError(f"the bridge runs, and could not be made to forget: {answer['error']}; try again")


def _find(journal: Household, plan: Plan, wanted: Wanted) -> Traces:
    """Look through all of the journal."""
    updates = [
        seq
        for seq, topic, event_topic, document in journal.each_update()
        if wanted.is_in(document) or wanted.is_in_topic(topic) or wanted.is_in_topic(event_topic)
    ]
    gone = set(updates)
    failed = journal.last_failure()
    learned = [one for one in journal.learned() if wanted.is_in(one.key) or wanted.is_in(one.name)]
    named = {trigger_topic(plan, one.key) for one in learned}
    return Traces(
        updates=tuple(updates),
        letters=tuple(
            number for number, reason, body in journal.each_letter() if wanted.is_in(reason) or wanted.is_in_bytes(body)
        ),
        learned=tuple((one.kind, one.key) for one in learned),
        discoveries=tuple(
            topic for topic in sorted(journal.discoveries()) if topic in named or wanted.is_in_topic(topic)
        ),
        topics=tuple(topic for topic, seq in journal.each_topic() if seq in gone or wanted.is_in_topic(topic)),
        failure=failed is not None and wanted.is_in(failed),
    )


def _swept(settings: Settings, report: Report, wanted: Wanted) -> Report:
    """Have the embedded broker's files written anew if it stands in them, and note what is left then."""
    _look_beside(settings, report, wanted)
    if report.in_broker is None or not settings.mqtt.is_embedded:
        return report
    try:
        sweep(settings)
    except CleanError:
        return report  # which says that it still stands there
    deadline = time.monotonic() + SWEEP_PATIENCE
    while report.in_broker is not None and time.monotonic() < deadline:
        time.sleep(0.1)
        report.left, report.in_broker = [], None
        _look_beside(settings, report, wanted)
    return report


def _look_beside(settings: Settings, report: Report, wanted: Wanted) -> None:
    """Note files here in which it still stands, e.g. a journal that was set aside; copies elsewhere nobody knows."""
    here, journal = state_directory(), settings.journal_path
    broker = here / "broker"
    its_own = {journal, *(journal.with_name(journal.name + suffix) for suffix in ("-wal", "-shm"))}
    for file in sorted({*here.rglob("*"), *journal.parent.glob(f"{journal.name}*")} - its_own):
        is_brokers = file.is_relative_to(broker)
        if (is_brokers and report.in_broker) or not file.is_file() or file.is_symlink():
            continue
        if not _stands_in(file, wanted):
            continue
        if is_brokers:
            report.in_broker = broker
        else:
            report.left.append(file)


def _stands_in(file: Path, wanted: Wanted) -> bool:
    """Whether the bytes of a file have it."""
    try:
        with file.open("rb") as opened:
            tail = b""
            while chunk := opened.read(SLICE):
                if wanted.stands_in(tail + chunk):
                    return True
                tail = chunk[-OVERLAP:]
    except OSError:
        return False
    return False
