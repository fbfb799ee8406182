"""Every process that is deployed is told only what it knows, at the ports that are open for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.configure import load
from baton.membership.source import split_address
from baton.settings import (
    DecodeSettings,
    FrontSettings,
    GatewaySettings,
    PrefillSettings,
    WorkerSettings,
)
from tests import deployment
from tests.deployment import Container

SETTINGS = {
    "gateway": GatewaySettings,
    "prefill_worker": PrefillSettings,
    "decode_worker": DecodeSettings,
}
COMPOSE, GPU = "docker-compose.yml", "docker-compose.gpu.yml"


def containers() -> Iterator[tuple[str, Container]]:
    for files in ([COMPOSE], [COMPOSE, GPU]):
        for made in deployment.compose_containers(deployment.composed(*files)["services"]):
            yield files[-1], made
    gpu = deployment.gpu_values()
    for where, values in (
        ("chart", []),
        ("chart on GPUs", [gpu]),
        ("chart, all of it", [gpu, deployment.EVERYTHING]),
        ("chart, roles that change", [deployment.ELASTIC]),
    ):
        for made in deployment.pod_containers(deployment.charted(*values)):
            yield where, made
    for name in ("gateway", "worker"):
        command = next(line for line in deployment.stages()[name] if line.startswith("CMD "))
        environment = deployment.image_environment(name)
        yield "Dockerfile", Container(name, tuple(json.loads(command[4:])), environment)


ALL = [pytest.param(made, id=f"{where}: {made.name}") for where, made in containers()]


@pytest.mark.parametrize("made", ALL)
def test_told_what_it_knows(made: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = SETTINGS[made.module]
    told = {name for name in made.environment if name.startswith("BATON_")}
    assert told <= {f"BATON_{name.upper()}" for name in kind.model_fields}
    for name in told:
        monkeypatch.setenv(name, made.environment[name])
    settings = load(kind, made.flags, made.module)  # exits where a value is not accepted
    assert settings.host == "0.0.0.0"
    if isinstance(settings, WorkerSettings):
        assert settings.port == 7000
        assert settings.device == ("cuda:0" if settings.dtype == "bfloat16" else "cpu")
    else:
        assert isinstance(settings, GatewaySettings)
        if made.environment.keys() & {"BATON_MEMBERSHIP", "BATON_ADMIN_HOST"}:  # not the bare image
            assert settings.admin_host == settings.rpc_host == "0.0.0.0"
        fields = FrontSettings.model_fields
        given = (settings.port, settings.admin_port, settings.rpc_port)
        assert given == tuple(fields[n].default for n in ("port", "admin_port", "rpc_port"))
        sides = [split_address(address) for address in settings.source.addresses]
        assert [(host.removeprefix("baton-"), port) for host, port in sides] == [
            ("prefill", 7000),
            ("decode", 7000),
        ]


def test_the_demo_model_is_in_the_images() -> None:
    root = deployment.ROOT
    for name in ("gateway", "worker"):
        where = deployment.image_environment(name)["BATON_MODEL"]
        (copied,) = [line for line in deployment.stages()[name] if line.endswith(f" {where}")]
        source = root / copied.split()[1]
        assert (source / "model.safetensors").is_file()
        top = source.relative_to(root).parts[0]
        assert f"!{top}" in (root / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_images_run_as_nobody(name: str) -> None:
    lines = deployment.stages()[name]
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 10001:10001"]
    assert any("useradd --uid 10001" in line for line in lines)
    after = lines[lines.index(users[0]) :]
    assert not any(line.startswith("RUN") for line in after)
    assert any(line.startswith("HEALTHCHECK") and '"baton", "health"' in line for line in lines)
    ports = {"gateway": "8000 8001 8002", "worker": "7000 7001"}
    assert f"EXPOSE {ports[name]}" in lines


def test_compose_drains_before_it_kills() -> None:
    services = deployment.composed(COMPOSE)["services"]
    for name in ("prefill", "decode"):
        grace = float(services[name]["environment"]["BATON_DRAIN_GRACE"])
        assert float(services[name]["stop_grace_period"].removesuffix("s")) >= grace + 10


def test_compose_hides_what_is_not_for_clients() -> None:
    services = deployment.composed(COMPOSE)["services"]
    for name, service in services.items():
        published = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in published), name
        if name in ("gateway", "prefill", "decode"):
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert not any("ports" in services[name] for name in ("prefill", "decode"))


def test_compose_has_a_gpu_for_each_worker() -> None:
    services = deployment.composed(COMPOSE, GPU)["services"]
    gpus = [
        device["device_ids"]
        for name in ("prefill", "decode")
        for device in services[name]["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert gpus == [["0"], ["1"]]


def test_what_compose_mounts_is_there() -> None:
    made = deployment.composed(COMPOSE)
    for service in made["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in made["volumes"] or Path(deployment.ROOT / source).exists(), volume
