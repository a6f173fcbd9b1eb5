"""Requests by MQTT: what is answered, what is refused, and that nothing which comes can hurt."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from bridge import requests
from bridge.mqtt import ConnectionEndedError
from bridge.requests import Deed, Requests


class Asked:
    """Requests whose answers are kept, and whose clock stands until it is moved."""

    def __init__(self, allowed: tuple[str, ...] = ("health", "dead_letters", "reconnect"), **deeds: Deed) -> None:
        self.answers: list[tuple[str, Any]] = []
        self.done: list[str] = []
        self.now = 1_000.0
        known: dict[str, Deed] = {what: self._deed(what) for what in ("health", "dead_letters", "reconnect")}
        self.requests = Requests(
            known | deeds,
            frozenset(allowed),
            lambda topic, payload: self.answers.append((topic, json.loads(payload))),
            now=lambda: self.now,
        )

    def _deed(self, what: str) -> Deed:
        def do(_: object) -> dict[str, Any]:
            self.done.append(what)
            return {"did": what}

        return do

    def ask(self, what: str, payload: object = None, **more: Any) -> Any:
        """The answer to a request that is carried out at once, by topic and JSON."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload if payload is not None else more).encode()
        self.requests.carry_out(what, raw)
        return self.answers.pop() if self.answers else None


def test_a_request_is_answered_with_its_transaction() -> None:
    """Who asks tells by it which answer is theirs."""
    assert Asked().ask("health", transaction="a-1") == (
        "bridge/response/health",
        {"status": "ok", "transaction": "a-1", "data": {"did": "health"}},
    )


def test_without_a_transaction_there_is_none_in_the_answer() -> None:
    topic, answer = Asked().ask("health")
    assert (topic, answer) == ("bridge/response/health", {"status": "ok", "data": {"did": "health"}})


def test_what_the_settings_do_not_allow_is_not_done_and_the_answer_says_which_setting() -> None:
    """Otherwise the setting protects nothing, or the user does not find it."""
    asked = Asked(allowed=("health",))
    _, answer = asked.ask("reconnect")
    assert answer == {"status": "error", "error": "the settings do not allow it; set mqtt.requests.reconnect to true"}
    assert not asked.done


def test_an_unknown_request_is_answered_where_its_name_does_not_matter() -> None:
    """A name from outside in a topic of ours could be any topic."""
    topic, answer = Asked().ask("health/../../state", transaction=7)
    assert topic == "bridge/response/error"
    assert answer["transaction"] == 7
    assert "there is no such request; ask for health, dead_letters, reconnect" in answer["error"]


@pytest.mark.parametrize(
    "payload",
    [
        b"reconnect!",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"transaction":' + b"[" * 2_000,
        b'{"transaction": NaN}',
        b"{}" + b" " * requests.LARGEST,
    ],
    ids=["text", "no UTF-8", "list", "null", "deep", "deeper", "NaN", "large"],
)
def test_what_is_no_small_json_object_is_refused(payload: bytes) -> None:
    """One request that cannot be read must not end what reads them."""
    asked = Asked()
    _, answer = asked.ask("reconnect", payload)
    assert answer["status"] == "error"
    assert not asked.done


@pytest.mark.parametrize("transaction", [None, True, 1.5, ["x"], {"x": 1}, "x" * 101, 10**15 * 10**90])
def test_a_transaction_that_is_no_short_text_or_number_is_refused(transaction: object) -> None:
    """It is repeated to everybody who listens."""
    payload = json.dumps({"transaction": transaction}).encode()
    asked = Asked()
    _, answer = asked.ask("reconnect", payload)
    assert answer["status"] == "error"
    assert "transaction" not in answer
    assert not asked.done


def test_what_comes_twice_is_done_once() -> None:
    """QoS 1 may bring a request again."""
    asked = Asked()
    assert asked.ask("dead_letters", transaction="x")
    assert asked.ask("dead_letters", transaction="x") is None
    assert asked.done == ["dead_letters"]
    asked.now += requests.SAME
    assert asked.ask("dead_letters", transaction="x"), "some count from 1 at each start"


def test_what_costs_something_is_not_done_again_at_once() -> None:
    """Somebody who asks all the time would have it done all the time."""
    asked = Asked()
    assert asked.ask("reconnect")[1]["status"] == "ok"
    asked.now += requests.GAPS["reconnect"] - 1
    assert "wait 60 seconds" in asked.ask("reconnect")[1]["error"]
    asked.now += 1
    assert asked.ask("reconnect")[1]["status"] == "ok"


def test_a_deed_that_fails_is_told_and_the_next_request_is_answered() -> None:
    """A fault in one must not take the bridge down."""

    def fail(_: object) -> dict[str, Any]:
        raise ZeroDivisionError

    asked = Asked(health=fail)
    assert asked.ask("health")[1] == {"status": "error", "error": "it failed; look at the log"}
    assert asked.ask("reconnect")[1]["status"] == "ok"


def test_a_retained_request_and_an_empty_one_are_not_heard() -> None:
    """A retained one would come at each connection; an empty one takes it away."""
    asked = Asked()
    assert asked.requests.hear("bridge/request/reconnect", b"{}", retained=True)
    assert asked.requests.hear("bridge/request/reconnect", b"", retained=False)
    asked.requests.stop()
    asked.requests.run()
    assert not asked.done
    assert not asked.answers


def test_what_is_no_request_is_left_to_others() -> None:
    asked = Asked()
    for topic in ("bridge/info", "x/bridge/request/health", "bridge/request", "bridge/response/health"):
        assert not asked.requests.hear(topic, b"{}", retained=False)


def test_a_flood_is_heard_as_far_as_its_bound_and_leaves_nothing_behind() -> None:
    """Otherwise memory and log grow as long as somebody sends."""
    asked = Asked()
    for _ in range(10_000):
        asked.requests.hear("bridge/request/health", b"{}", retained=False)
    assert asked.requests._waiting.qsize() == requests.HEARD
    asked.requests._waiting.get()
    asked.requests.hear("bridge/request/health", b"{}", retained=False)
    assert asked.requests._waiting.qsize() == requests.HEARD - 1, "there was room, and it was heard"
    asked.now += requests.HEARD_WITHIN
    for number in range(10_000):
        asked.requests.hear("bridge/request/health", b'{"transaction": %d}' % number, retained=False)
    assert asked.requests._waiting.qsize() == requests.WAITING
    asked.requests.stop()
    asked.requests.run()
    assert len(asked.answers) < requests.WAITING
    assert asked.requests.hear("bridge/request/health", b"x" * 10**7, retained=False)
    for number in range(1_000):
        asked.now += 1
        asked.ask("health", transaction=number)
    assert len(asked.requests._seen) <= requests.SAME


def test_a_long_deed_holds_up_nobody_who_hears() -> None:
    """The thread that hears is the one that publishes clicks."""
    may_end = threading.Event()
    began = threading.Event()

    def slow(_: object) -> dict[str, Any]:
        began.set()
        may_end.wait(60)
        return {}

    asked = Asked(health=slow)
    thread = threading.Thread(target=asked.requests.run)
    thread.start()
    for _ in range(requests.HEARD):
        assert asked.requests.hear("bridge/request/health", b"{}", retained=False)
    assert began.wait(60)
    assert not asked.answers
    may_end.set()
    asked.requests.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert asked.answers


# --- the subscription -------------------------------------------------------------------------------------------------


class Line:
    """A connection that only subscribes."""

    def __init__(self, *, answers: bool) -> None:
        self.topics: list[str] = []
        self.subscribed = [5] if answers else []

    def subscribe(self, *topics: str, qos: int) -> int:
        assert qos == 0, "a flood would have to be acknowledged"
        self.topics += topics
        return 5


HUNG_UP = ConnectionEndedError("closed", hung_up=True)


def test_all_requests_have_one_subscription_and_none_where_nothing_is_allowed() -> None:
    line: Any = Line(answers=True)
    Asked().requests.subscribe(line, "home/whatsapp")
    Asked(allowed=()).requests.subscribe(line, "home/whatsapp")
    assert line.topics == ["home/whatsapp/bridge/request/#"]


@pytest.mark.parametrize(("answers", "subscriptions"), [(False, requests.STRIKES), (True, requests.STRIKES + 2)])
def test_a_broker_that_hangs_up_at_the_subscription_is_not_asked_for_ever(answers: bool, subscriptions: int) -> None:
    """Some brokers end the connection at what they do not allow: no click would ever get through."""
    asked = Asked()
    found = 0
    for _ in range(requests.STRIKES + 2):
        line: Any = Line(answers=answers)
        asked.requests.subscribe(line, "whatsapp")
        asked.requests.lost(line, HUNG_UP)
        found += len(line.topics)
    assert found == subscriptions


def test_a_connection_that_breaks_by_itself_says_nothing_about_the_subscription() -> None:
    """A broker that is started anew three times would never be heard again."""
    asked = Asked()
    line: Any = SimpleNamespace(subscribed=[], subscribe=lambda *_, qos: 5)
    for _ in range(requests.STRIKES + 1):
        asked.requests.subscribe(line, "whatsapp")
        asked.requests.lost(line, ConnectionEndedError("keep alive timeout"))
    again: Any = Line(answers=True)
    asked.requests.subscribe(again, "whatsapp")
    assert again.topics
