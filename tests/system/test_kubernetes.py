"""deploy/kubernetes: against the schemas of Kubernetes, and a bridge with its very settings and probes."""

from __future__ import annotations

import copy
import http.client
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate
from kubernetes_validate.utils import all_versions
from werkzeug.security import generate_password_hash

from bridge.service import PUBLISHER_PATIENCE, RECEIVER_PATIENCE
from tests.postgres import running
from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, Program, free_port, program, status

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = {
    path.name: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
}
POD: dict[str, Any] = MANIFESTS["deployment.yaml"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
SETTINGS: dict[str, str] = MANIFESTS["configmap.yaml"]["data"]
SECRETS: dict[str, str] = MANIFESTS["secret.example.yaml"]["stringData"]
SECRETS_AT = "/run/secrets/whatsapp2mqtt"
#: The oldest one that knows all that is used, and those after it.
VERSIONS = sorted({one for one in all_versions() if tuple(map(int, one.split(".")[:2])) >= (1, 31)})


@pytest.mark.parametrize("name", MANIFESTS)
def test_each_manifest_is_what_kubernetes_takes(name: str) -> None:
    """`kubectl apply` would stop in the middle, or drop a line that it does not know."""
    for version in VERSIONS:
        validate(MANIFESTS[name], version, strict=True)


def test_a_word_that_kubernetes_does_not_know_is_found() -> None:
    """A probe under a wrong name is no probe: without this, the test above might look at nothing."""
    deployment = copy.deepcopy(MANIFESTS["deployment.yaml"])
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(ValidationError, match="readynessProbe"):
        validate(deployment, VERSIONS[0], strict=True)


def test_all_is_applied_but_the_example_of_a_secret() -> None:
    """A manifest that is not named is not there; a secret that everybody can read here is none."""
    assert sorted([*KUSTOMIZATION["resources"], "secret.example.yaml"]) == sorted(MANIFESTS)
    assert set(SECRETS.values()) == {""}
    assert KUSTOMIZATION["images"][0]["name"] == CONTAINER["image"]
    assert KUSTOMIZATION["namespace"] == MANIFESTS["namespace.yaml"]["metadata"]["name"]


def test_what_belongs_together_finds_each_other() -> None:
    """A selector that selects nothing says so nowhere: no endpoint, no policy, no budget."""
    labels = MANIFESTS["deployment.yaml"]["spec"]["template"]["metadata"]["labels"]
    selectors = (
        MANIFESTS["deployment.yaml"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["service.yaml"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    )
    assert all(selector == labels for selector in selectors)
    ports = {port["name"] for port in CONTAINER["ports"]}
    asked = [
        *(CONTAINER[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")),
        *(port["targetPort"] for port in MANIFESTS["service.yaml"]["spec"]["ports"]),
        *(port["port"] for rule in MANIFESTS["networkpolicy.yaml"]["spec"]["ingress"] for port in rule["ports"]),
    ]
    assert set(asked) == ports
    assert CONTAINER["envFrom"][0]["configMapRef"]["name"] == MANIFESTS["configmap.yaml"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    assert volumes["secrets"]["secret"]["secretName"] == MANIFESTS["secret.example.yaml"]["metadata"]["name"]
    values = [one["value"] for one in CONTAINER["env"]] + list(SETTINGS.values())
    used = {found for value in values for found in re.findall(rf"{SECRETS_AT}/([\w.]+)", value)}
    assert used == set(SECRETS)


def test_a_pod_is_as_hard_as_it_can_be() -> None:
    """A line that is lost here is seen by nobody."""
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert MANIFESTS["networkpolicy.yaml"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    dockerfile = (FOLDER.parents[1] / "Dockerfile").read_text()
    context = POD["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile


def test_a_pod_has_the_time_it_needs_to_stop() -> None:
    """What takes longer is killed: callbacks that were being answered then are lost to their sender."""
    drain = int(SETTINGS["WHATSAPP2MQTT_WEBHOOK__DRAIN"].removesuffix("s"))
    assert POD["terminationGracePeriodSeconds"] > drain + RECEIVER_PATIENCE + PUBLISHER_PATIENCE + 10
    readiness = CONTAINER["readinessProbe"]
    noticed = (readiness["periodSeconds"] + readiness["timeoutSeconds"]) * readiness["failureThreshold"]
    assert noticed < drain


@pytest.fixture
def pod(tmp_path: Path, make_bridge: MakeBridge) -> Iterator[Bridge]:
    """A bridge with the settings of the ConfigMap and the Deployment; database and brokers show certificates."""
    certificate, key = tmp_path / "database_ca.pem", tmp_path / "server.key"
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=a test"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", certificate),
            *("-addext", "subjectAltName=" + ",".join(f"IP:{address}" for address in BROKERS)),
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    files = {"broker_ca.pem": certificate.read_text(), "page_hash": generate_password_hash("x" * 20, method="scrypt")}
    for name in SECRETS.keys() - {"database_ca.pem"}:
        (tmp_path / name).write_text(files.get(name, secrets.token_urlsafe(24)))
    ports = {"8080": free_port(), "8081": free_port(), "5432": 0, "8883": free_port()}

    def here(text: str) -> str:
        """The addresses of the manifests, here."""
        text = text.replace(SECRETS_AT, str(tmp_path)).replace("0.0.0.0:8081", f"0.0.0.0:{ports['8081']}")
        text = text.replace("postgresql.example.org", f"127.0.0.1:{ports['5432']}")
        return re.sub(r"broker-(\d)\.example\.org", lambda found: f"127.0.0.{found[1]}:{ports['8883']}", text)

    with running() as server, Program(_mosquitto(tmp_path, ports["8883"]), tmp_path, dict(os.environ)) as broker:
        broker.wait_said(" running")
        ports["5432"] = server.port
        server.execute(f"CREATE ROLE whatsapp2mqtt LOGIN PASSWORD '{(tmp_path / 'database_password').read_text()}'")
        server.execute("CREATE DATABASE whatsapp2mqtt OWNER whatsapp2mqtt TEMPLATE template0")
        server.show(certificate, key)
        server.ask_password_of("whatsapp2mqtt")
        given = {one["name"]: one["value"] for one in CONTAINER["env"]}
        bridge = make_bridge(webhook__listen=f"0.0.0.0:{ports['8080']}")
        bridge.environment |= {name: here(value) for name, value in (SETTINGS | given).items()}
        bridge.webhook, bridge.page = ports["8080"], ports["8081"]
        bridge.path = f"/webhook/{(tmp_path / 'path_token').read_text()}"
        yield bridge


BROKERS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def _mosquitto(folder: Path, port: int) -> list[object]:
    """One that has three addresses, and lets the bridge in with its password."""
    passwords = folder / "passwords"
    passwords.touch(mode=0o600)
    for user in ("whatsapp2mqtt", "witness"):
        password = (folder / "mqtt_password").read_text()
        subprocess.run([program("mosquitto_passwd"), "-b", passwords, user, password], check=True, capture_output=True)
    tls = f"cafile {folder}/broker_ca.pem\ncertfile {folder}/broker_ca.pem\nkeyfile {folder}/server.key\n"
    listeners = "".join(f"listener {port} {address}\n{tls}" for address in BROKERS)
    root = "user root\n" if os.geteuid() == 0 else ""
    (folder / "mosquitto.conf").write_text(f"{root}password_file {passwords}\nlog_type all\n{listeners}")
    return [program("mosquitto"), "-c", folder / "mosquitto.conf"]


def test_a_pod_starts_with_these_settings_answers_its_probes_and_ends_in_order(pod: Bridge) -> None:
    """A roll-out would hang, or callbacks would be sent to a pod that is gone."""
    pod.start()

    def asked(probe: str) -> int:
        """As the kubelet asks: by the pod's address, which no setting names."""
        connection = http.client.HTTPConnection("127.0.0.4", pod.page, timeout=PATIENCE)
        try:
            connection.request("GET", CONTAINER[probe]["httpGet"]["path"])
            return connection.getresponse().status
        finally:
            connection.close()

    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert [asked(probe) for probe in probes] == [200, 200, 200]
    assert pod.post(status("m1")).status == 200
    assert pod.post(status("m1"), "/webhook").status == 404
    os.kill(pod.pid, signal.SIGTERM)
    pod.program.wait_log("draining: callbacks are still taken, and /readyz says no")
    assert [asked(probe) for probe in probes] == [200, 503, 200]
    assert pod.post(status("m2")).status == 200
    assert pod.program.end() == 0  # a second signal: at once
