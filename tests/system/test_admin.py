"""The listener of the page, from outside: health, status, metrics, and who is let in."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import apsw
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.security import check_password_hash, generate_password_hash

from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Answer, Bridge, status

CLICK = {"id": "c1", "from": "15550001234", "type": "button", "button": {"payload": "gate", "text": "Open"}}


def ask(bridge: Bridge, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
    """A request to the page's listener; header names with _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", page_port(bridge), timeout=PATIENCE)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())
    finally:
        connection.close()


def page_port(bridge: Bridge) -> int:
    line = bridge.program.wait_log("starting")
    return int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", line["page"])[1])  # type: ignore[index]


def samples(bridge: Bridge) -> dict[tuple[str, ...], float]:
    """Every metric by its name and the values of its labels."""
    answer = ask(bridge, "/metrics")
    assert answer.status == 200
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }


def until(holds: Any) -> Any:
    """Ask again until this is true; the program under test has nothing that could wake us."""
    for _ in range(int(PATIENCE * 10)):
        if found := holds():
            return found
        signal.sigtimedwait([], 0.1)
    raise AssertionError("it never came")


def test_health_says_alive_and_ready(bridge: Bridge) -> None:
    """Docker and Kubernetes would restart a bridge that is well, or leave one that hangs."""
    assert ask(bridge, "/healthz").json == {"alive": True}
    assert ask(bridge, "/readyz").json == {"ready": True, "why": []}
    assert ask(bridge, "/healthz", "HEAD").status == 200


def test_ready_means_that_a_callback_can_be_stored(bridge: Bridge) -> None:
    """A load balancer would send callbacks to a bridge that answers 503 to each."""
    other = apsw.Connection(str(bridge.state / "journal.db"))
    other.execute("BEGIN IMMEDIATE")  # a database tool that somebody left open
    try:
        answer = until(lambda: (found := ask(bridge, "/readyz")).status == 503 and found)
    finally:
        other.close()
    assert "another process holds it" in answer.json["why"][0]
    until(lambda: ask(bridge, "/readyz").status == 200)


def test_the_status_is_the_whole_truth_in_json(bridge: Bridge) -> None:
    """`whatsapp2mqtt status` and scripts stand on it."""
    first = ask(bridge, "/api/status").json
    assert first["ok"]
    assert first["webhook"]["state"] == "waiting"
    assert bridge.post({"messages": [CLICK]}).status == 200
    found = until(lambda: (now := ask(bridge, "/api/status").json)["webhook"]["answers"].get("200") and now)
    assert found["webhook"]["state"] == "ok"
    assert found["webhook"]["answers"]["200"] == 1
    assert found["webhook"]["last_click"]
    assert found["broker"]["state"] == "ok"
    assert found["broker"]["protocol"] == "3.1.1"
    assert found["journal"]["path"].endswith("journal.db")
    assert found["health"]["backlog"] >= 0
    assert "15550001234" not in json.dumps(found)


def test_metrics_count_what_happened(bridge: Bridge) -> None:
    """A dashboard that shows other numbers than those that were is worse than none."""
    body = status("m1") | {"messages": [CLICK, {"id": "t1", "from": "1", "type": "text", "text": {"body": "hi"}}]}
    answers = "whatsapp2mqtt_webhook_answers_total"
    with bridge.listen() as subscriber:
        assert bridge.post(body).status == 200
        assert bridge.post(status("m1")).status == 200
        assert bridge.post(b"{no json").status == 200
        assert bridge.post(status("m1"), path="/elsewhere").status == 404
        subscriber.wait("whatsapp/button/gate")
        subscriber.wait("whatsapp/m1/status")
    found = until(lambda: (now := samples(bridge))["whatsapp2mqtt_delivery_seconds_count", "button"] and now)
    name = "whatsapp2mqtt_entries_total"
    assert found[name, "status", "stored"] == 1
    assert found[name, "button", "stored"] == 1
    assert found[name, "status", "duplicate"] == 1
    assert found[name, "other", "ignored"] == 1
    assert found[name, "unknown", "dead"] == 1
    assert found[answers, "200"] == 3
    assert found[answers, "404"] == 1, "what the bridge itself asks at its start is counted, too"
    assert found["whatsapp2mqtt_webhook_limited_total", "stranger"] == 0
    assert found["whatsapp2mqtt_webhook_limited_total", "sender"] == 0
    assert found["whatsapp2mqtt_webhook_answer_seconds_count",] == 3
    assert found["whatsapp2mqtt_delivery_seconds_count", "status"] == 1
    assert found["whatsapp2mqtt_publications_total", "acknowledged", "event"] == 2
    assert found["whatsapp2mqtt_broker_connected",] == 1
    until(lambda: samples(bridge)["whatsapp2mqtt_dead_letters",] == 1)


def test_counts_go_on_when_a_receiver_dies(bridge: Bridge) -> None:
    """Prometheus takes a counter that falls for a restart, and shows a peak that never was."""
    assert bridge.post(status("m1")).status == 200
    answers = "whatsapp2mqtt_webhook_answers_total", "200"
    until(lambda: samples(bridge)[answers] == 1)  # an answer is counted just after it is given
    before = bridge.receiver
    os.kill(before, signal.SIGKILL)

    def posted() -> bool:
        try:
            return bridge.receiver != before and bridge.post(status("m2")).status == 200
        except (OSError, http.client.HTTPException, StopIteration):
            return False

    until(posted)
    until(lambda: samples(bridge)[answers] == 2)


def test_nothing_from_outside_makes_a_label(bridge: Bridge) -> None:
    """Each status name that somebody invents would be a series for ever: a full disk at Prometheus."""
    before = samples(bridge).keys()
    assert bridge.post(status("m1", 'new"} 1\nevil')).status == 200
    assert bridge.post({"messages": [CLICK | {"button": {"payload": "pay\nload", "text": "x"}}]}).status == 200
    until(lambda: samples(bridge)["whatsapp2mqtt_delivery_seconds_count", "button"] == 1)
    assert samples(bridge).keys() == before


def test_a_strangers_name_is_not_answered(bridge: Bridge) -> None:
    assert ask(bridge, "/metrics", Host="evil.example").status == 421
    assert ask(bridge, "/healthz", Host="evil.example").status == 421


def test_with_a_password_health_is_public_and_the_rest_is_not(make_bridge: MakeBridge) -> None:
    """A port that was opened by mistake would show everything."""
    hashed = generate_password_hash("correct horse", method="scrypt")
    bridge = make_bridge(admin__password=hashed).start()
    key = json.loads((bridge.state / "journal.admin").read_text())
    assert ask(bridge, "/healthz").status == 200
    assert ask(bridge, "/readyz").status == 200
    for path in ("/metrics", "/api/status"):
        assert ask(bridge, path).status == 401
        assert ask(bridge, path, Authorization="Basic YTpiZXR0ZXI=").status == 401
        assert ask(bridge, path, Authorization="Basic YTpjb3JyZWN0IGhvcnNl").status == 200
        assert ask(bridge, path, Authorization=f"Bearer {key['token']}").status == 200
    assert hashed not in bridge.program.said


def test_the_key_is_for_the_owner_alone_and_gone_at_the_end(bridge: Bridge) -> None:
    """Another user of the machine could look; a key that stays leads commands to a bridge that is gone."""
    file = bridge.state / "journal.admin"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["url"] == f"http://127.0.0.1:{page_port(bridge)}/"
    assert bridge.program.end() == 0
    assert not file.exists()


def test_off_means_that_nobody_listens(make_bridge: MakeBridge) -> None:
    bridge = make_bridge(admin__listen="off").start()
    assert bridge.program.wait_log("starting")["page"] is None
    assert not (bridge.state / "journal.admin").exists()


def test_beyond_loopback_it_wants_a_password(make_bridge: MakeBridge) -> None:
    """Everybody in the network could open the gate."""
    bridge = make_bridge(admin__listen="0.0.0.0:0").start(wait=False)
    assert bridge.program.wait() == 2
    assert "whatsapp2mqtt password" in bridge.program.said


def test_a_port_that_is_taken_stops_the_start_where_it_was_asked_for(make_bridge: MakeBridge, bridge: Bridge) -> None:
    other = make_bridge(admin__listen=f"127.0.0.1:{page_port(bridge)}").start(wait=False)
    assert other.program.wait() == 2
    assert "admin.listen" in other.program.said


def test_a_password_itself_is_refused_in_the_settings(make_bridge: MakeBridge) -> None:
    """It would stand readable in a file."""
    bridge = make_bridge(admin__password="correct horse").start(wait=False)
    assert bridge.program.wait() == 2
    assert "whatsapp2mqtt password" in bridge.program.said
    assert "correct horse" not in bridge.program.said


def test_the_password_command_prints_a_line_that_the_settings_take(tmp_path: Path) -> None:
    import yaml
    from click.testing import CliRunner

    from bridge.cli import main
    from bridge.config import load

    result = CliRunner().invoke(main, ["password"], input="correct horse\ncorrect horse\n")
    assert result.exit_code == 0
    file = tmp_path / "config.yaml"
    file.write_text(result.stdout)
    assert yaml.safe_load(file.read_text())["admin"]["password"] == load(file, environ={}).settings.admin.password
    assert CliRunner().invoke(main, ["password"], input="short\nshort\n").exit_code == 1


def test_the_hash_alone_is_made_in_a_pipe_for_a_file(tmp_path: Path) -> None:
    """Containers are given secrets as files, which a script makes."""
    from click.testing import CliRunner

    from bridge.cli import main
    from bridge.config import load

    result = CliRunner().invoke(main, ["password", "--hash"], input="correct horse\n")
    file = tmp_path / "page_hash"
    file.write_text(result.stdout)
    settings = load(None, environ={"WHATSAPP2MQTT_ADMIN__PASSWORD_FILE": str(file)}).settings
    assert settings.admin.password is not None
    assert check_password_hash(settings.admin.password, "correct horse")
    assert CliRunner().invoke(main, ["password", "--hash"], input="short\n").exit_code == 1


def test_every_metric_is_documented(bridge: Bridge) -> None:
    """Nobody can build an alert on a metric that nobody has heard of."""
    text = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name, *_ in samples(bridge)}
    ours = {name for name in families if name.startswith("whatsapp2mqtt_")}
    assert ours == set(re.findall(r"`(whatsapp2mqtt_\w+)`", text))
