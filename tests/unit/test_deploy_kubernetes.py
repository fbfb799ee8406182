"""The manifests: valid, the same from kustomize and from the chart, and with no right too many."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes_validate
import pytest

from baton.settings import TlsSettings
from baton.tls.gate import RULES
from baton.tls.names import DOMAIN, PARTIES, Party
from baton.tls.names import name as tls_name
from tests import deployment
from tests.deployment import ELASTIC, EVERYTHING, Document, charted, gpu_values, kustomized

#: Of operators that a cluster may have; their schemas are not Kubernetes' own.
OTHERS = {"Certificate", "Issuer", "ScaledObject", "ServiceMonitor"}
#: What is the chart's alone: whose release it is.
_RELEASE = {
    *("app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"),
    *("helm.sh/chart", "checksum/config"),
}

needs_kustomize = pytest.mark.skipif(
    not deployment.has_kustomize(), reason="neither kubectl nor kustomize"
)
CHARTS: dict[str, Callable[[], list[Document]]] = {
    "cpu": charted,
    "gpu": lambda: charted(gpu_values()),
    "production": lambda: charted(gpu_values(), EVERYTHING),
    "elastic": lambda: charted(ELASTIC),
}
overlays = pytest.mark.parametrize("overlay", CHARTS)


def of_kind(documents: Sequence[Document], kind: str) -> dict[str, Document]:
    return {made["metadata"]["name"]: made for made in documents if made["kind"] == kind}


@overlays
def test_valid(overlay: str) -> None:
    for made in CHARTS[overlay]():
        try:
            kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            assert made["kind"] in OTHERS
        else:
            assert made["kind"] not in OTHERS


@needs_kustomize
@overlays
def test_the_chart_is_what_kustomize_makes(overlay: str) -> None:
    ours = {key(made): plain(made) for made in CHARTS[overlay]()}
    theirs = {key(made): plain(made) for made in kustomized(overlay)}
    assert theirs.pop(("Namespace", "baton"))["metadata"]["name"] == "baton"
    assert ours.keys() == theirs.keys()
    for each, made in ours.items():
        assert made == theirs[each], each


def key(made: Document) -> tuple[str, str]:
    """Kustomize names a configuration by what is in it."""
    return made["kind"], re.sub(r"^(baton)-[a-z0-9]{10}$", r"\1", made["metadata"]["name"])


def plain(value: Any) -> Any:
    """Without what is the chart's alone, and where order means nothing, in one order."""
    if isinstance(value, dict):
        kept = {k: plain(v) for k, v in value.items() if k not in _RELEASE}
        if str(kept.get("name", "")).startswith("baton-"):
            kept["name"] = re.sub(r"^(baton)-[a-z0-9]{10}$", r"\1", kept["name"])
        return {k: v for k, v in kept.items() if v != {}}
    if isinstance(value, list):
        made = [plain(each) for each in value]
        named = all(isinstance(each, dict) and "name" in each for each in made)
        return sorted(made, key=lambda each: str(each["name"])) if named else made
    return value


@overlays
def test_pods_may_do_little(overlay: str) -> None:
    documents = CHARTS[overlay]()
    assert not {"Role", "ClusterRole"} & {made["kind"] for made in documents}
    accounts = of_kind(documents, "ServiceAccount")
    for pod in deployment.pods(documents).values():
        assert pod["automountServiceAccountToken"] is False
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False
        # A Service named as ours would be set as BATON_..., over our settings.
        assert pod["enableServiceLinks"] is False
        said = pod["securityContext"]
        assert said["runAsNonRoot"] and (said["runAsUser"], said["runAsGroup"]) == (10001, 10001)
        (only,) = pod["containers"]
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {v["name"] for v in pod["volumes"] if "emptyDir" in v}
        mounted = {v["mountPath"] for v in only["volumeMounts"] if v["name"] in writable}
        assert mounted == {"/home/baton/.cache", "/tmp"}


@overlays
def test_a_gpu_for_each_worker(overlay: str) -> None:
    pods = deployment.pods(CHARTS[overlay]())
    gpus = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name, pod in pods.items()
    }
    wanted = None if overlay in ("cpu", "elastic") else "1"
    assert gpus == {"gateway": None, "prefill": wanted, "decode": wanted}


@overlays
def test_time_to_drain(overlay: str) -> None:
    for made in deployment.pod_containers(documents := CHARTS[overlay]()):
        pod = deployment.pods(documents)[made.name]
        if made.name == "gateway":
            grace = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        else:
            grace = float(made.environment["BATON_DRAIN_GRACE"])
        assert pod["terminationGracePeriodSeconds"] >= grace + 10


@overlays
def test_ports_lead_somewhere(overlay: str) -> None:
    documents = CHARTS[overlay]()
    numbers = {
        name: {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        for name, pod in deployment.pods(documents).items()
    }
    for made in deployment.pod_containers(documents):
        told = {n: int(v) for n, v in made.environment.items() if n.endswith("PORT")}
        assert sorted(told.values()) == sorted(numbers[made.name].values())
        for probe in ("livenessProbe", "readinessProbe"):
            said = deployment.pods(documents)[made.name]["containers"][0][probe]
            check = next(
                said[how] for how in ("httpGet", "grpc", "tcpSocket", "exec") if how in said
            )
            if "command" in check:
                assert check["command"][-1] == f"127.0.0.1:{told['BATON_PORT']}"
            else:
                assert check["port"] in {*numbers[made.name], told["BATON_PORT"]}
    for service in of_kind(documents, "Service").values():
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= numbers[
            component
        ].keys()


def test_who_reaches_a_worker_is_who_may_call_it() -> None:
    """Every role that ``gate.py`` lets in, and no pod besides."""
    policies = of_kind(charted(), "NetworkPolicy")
    served = {
        "prefill": {Party.DECODE, Party.GATEWAY},
        "decode": {Party.GATEWAY},
    }
    methods = {"prefill": "/baton.v1.PrefillService", "decode": "/baton.v1.DecodeService"}
    for side, parties in served.items():
        may = RULES[methods[side]] | RULES["/baton.v1.WorkerService"]
        assert parties == may - {Party.RELAY, Party.ADMIN}
        (rule,) = policies[f"baton-{side}"]["spec"]["ingress"]
        pods, operators = rule["from"]
        assert components(pods["podSelector"]) == {party.value for party in parties}
        assert operators["namespaceSelector"]["matchLabels"] == {
            "kubernetes.io/metadata.name": "baton-operators"
        }


def components(selector: Document) -> set[str]:
    if "matchExpressions" in selector:
        (only,) = selector["matchExpressions"]
        return set(only["values"])
    return {selector["matchLabels"]["app.kubernetes.io/component"]}


def test_the_admin_port_is_for_operators() -> None:
    (clients, operators) = of_kind(charted(), "NetworkPolicy")["baton-gateway"]["spec"]["ingress"]
    assert clients == {"ports": [{"port": "http"}]}
    assert [port["port"] for port in operators["ports"]] == ["admin", "grpc"]
    assert operators["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "baton-operators"
    }


def test_workers_that_change_roles_may_be_either() -> None:
    """By their certificates, as `baton up --tls` makes them, and by who reaches them."""
    documents = charted(ELASTIC)
    for own in (Party.PREFILL, Party.DECODE):
        spec = of_kind(documents, "Certificate")[f"baton-{own.value}"]["spec"]
        names = [tls_name(DOMAIN, party, own.value) for party in (Party.PREFILL, Party.DECODE)]
        assert spec["uris"] == [name.uri for name in names]
        assert set(spec["dnsNames"]) == {host for name in names for host in name.hosts}
        policy = of_kind(documents, "NetworkPolicy")[f"baton-{own.value}"]["spec"]
        (incoming,), (outgoing,) = policy["ingress"], policy["egress"]
        assert components(incoming["from"][0]["podSelector"]) == {"gateway", "prefill", "decode"}
        assert components(outgoing["to"][0]["podSelector"]) == {"prefill", "decode"}
    told = {made.name: made for made in deployment.pod_containers(documents)}
    assert told["gateway"].environment["BATON_AUTO_ROLES"] == "true"
    for side in ("prefill", "decode"):
        assert told[side].module == "decode_worker"
        assert told[side].environment["BATON_ROLE"] == side


def test_certificates_name_what_is_read_in_them() -> None:
    documents = charted(EVERYTHING)
    certificates = of_kind(documents, "Certificate")
    for party in PARTIES - {Party.RELAY}:
        spec = certificates[f"baton-{party.value}"]["spec"]
        name = tls_name(DOMAIN, party, party.value)
        assert (spec["uris"], spec["dnsNames"]) == ([name.uri], name.hosts)
        assert {"server auth", "client auth"} <= set(spec["usages"])
    for name, pod in deployment.pods(documents).items():
        (only,) = pod["containers"]
        (secret,) = [v["secret"] for v in pod["volumes"] if v["name"] == "tls"]
        assert secret["secretName"] == certificates[f"baton-{name}"]["spec"]["secretName"]
        told = {each["name"] for each in only["env"]}
        fields = (field for field in TlsSettings.model_fields if field.startswith("tls_"))
        assert {f"BATON_{field.upper()}" for field in fields} <= told


def test_each_side_is_scaled_by_what_it_runs_out_of() -> None:
    documents = charted(EVERYTHING)
    scaled = of_kind(documents, "ScaledObject") | of_kind(documents, "HorizontalPodAutoscaler")
    assert {made["spec"]["scaleTargetRef"]["name"] for made in scaled.values()} == set(
        of_kind(documents, "Deployment")
    )
    for made in of_kind(documents, "Deployment").values():
        assert "replicas" not in made["spec"]  # or each upgrade would undo what was scaled
    asked = {
        name: made["spec"]["triggers"][0]["metadata"]["query"]
        for name, made in of_kind(documents, "ScaledObject").items()
    }
    assert "baton_compute_queue_tokens" in asked["baton-prefill"]
    assert "baton_kv_blocks" in asked["baton-decode"]
    monitors = of_kind(documents, "ServiceMonitor")
    for side in ("baton-prefill", "baton-decode"):
        assert f'job="{side}"' in asked[side]
        (relabelled,) = monitors[side]["spec"]["endpoints"][0]["relabelings"]
        assert relabelled == {"targetLabel": "job", "replacement": side}
