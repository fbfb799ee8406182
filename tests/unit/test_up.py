"""What ``baton up`` decides to start, before it starts anything."""

from __future__ import annotations

import socket

import pytest

from baton.cli import cores, ports
from baton.cli.processes import Patience, Spec
from baton.cli.up import FrontPorts, plan
from baton.configure import load
from baton.settings import DecodeSettings, GatewaySettings, UpSettings

KINDS = {
    "decode_worker": DecodeSettings,
    "gateway": GatewaySettings,
}


def planned(*flags: str) -> dict[str, Spec]:
    settings = load(UpSettings, ["--model", "some/model", *flags], "baton up")
    return {spec.name: spec for spec in plan(settings, FrontPorts(9000, 9001, 9002))}


def told(spec: Spec) -> DecodeSettings | GatewaySettings:
    """The settings of the process itself, from the arguments it is given."""
    return load(KINDS[spec.module], spec.arguments, spec.name)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["p0", "d0", "gateway"]),
        (["--prefill", "2", "--decode", "3"], ["p0", "p1", "d0", "d1", "d2", "gateway"]),
        (["--colocated", "2"], ["c0", "c1", "gateway"]),
        (["--colocated", "1", "--prefill", "1"], ["p0", "d0", "c0", "gateway"]),
        (["--prefill", "1", "--decode", "0", "--colocated", "1"], ["p0", "c0", "gateway"]),
    ],
)
def test_what_is_started(flags: list[str], names: list[str]) -> None:
    assert list(planned(*flags)) == names


def test_settings_reach_the_processes_that_know_them() -> None:
    specs = planned(
        *("--num-blocks", "64", "--deterministic", "--no-prefix-cache", "--queue-timeout", "7"),
        *("--served-model-name", "m", "--log-level", "warning", "--dtype", "bfloat16"),
    )
    for name in ("p0", "d0"):
        worker = told(specs[name])
        assert isinstance(worker, DecodeSettings)
        assert (worker.num_blocks, worker.deterministic, worker.prefix_cache) == (64, True, False)
        assert (worker.dtype, worker.log_level, worker.served_name) == ("bfloat16", "warning", "m")
        assert specs[name].address == f"{worker.host}:{worker.port}"
    gateway = told(specs["gateway"])
    assert isinstance(gateway, GatewaySettings)
    assert (gateway.queue_timeout, gateway.served_name) == (7.0, "m")
    assert (gateway.port, gateway.admin_port, gateway.rpc_port) == (9000, 9001, 9002)
    assert gateway.membership == "embedded"
    for name in ("p0", "d0"):
        worker = told(specs[name])
        assert isinstance(worker, DecodeSettings)
        assert worker.join == "127.0.0.1:9002"
    assert all(told(spec).exit_with_parent for spec in specs.values())


def test_every_worker_can_take_any_role() -> None:
    specs = planned("--role-grace", "2", "--auto-roles")
    p0, d0, gateway = told(specs["p0"]), told(specs["d0"]), told(specs["gateway"])
    assert isinstance(p0, DecodeSettings) and isinstance(d0, DecodeSettings)
    assert (p0.role, d0.role, p0.role_grace) == ("prefill", "decode", 2.0)
    assert isinstance(gateway, GatewaySettings) and gateway.auto_roles


@pytest.mark.parametrize(
    ("flags", "told_to"),
    [
        ([], [None, None, None]),
        (["--metrics-port", "9100"], [9100, 9101, 9102]),
        (["--metrics-port", "0"], [0, 0, 0]),
    ],
)
def test_each_worker_has_a_metrics_port(flags: list[str], told_to: list[int | None]) -> None:
    specs = planned("--prefill", "2", *flags)
    workers = [told(specs[name]) for name in ("p0", "p1", "d0")]
    assert [w.metrics_port for w in workers if isinstance(w, DecodeSettings)] == told_to


def test_unset_settings_keep_the_one_default() -> None:
    assert "--block-size" not in planned()["p0"].arguments


def test_our_environment_is_not_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_PREFILL", "2")
    monkeypatch.setenv("BATON_NUM_BLOCKS", "32")
    specs = planned()
    assert {"p0", "p1"} <= specs.keys()
    assert "BATON_PREFILL" not in specs["gateway"].environment
    worker = told(specs["p1"])
    assert isinstance(worker, DecodeSettings)
    assert worker.num_blocks == 32


@pytest.mark.parametrize(
    ("threads", "users", "expected"),
    [(1, None, None), (2, None, "PASSIVE"), (2, "ACTIVE", "ACTIVE")],
)
def test_threads_of_a_worker_wait_asleep(
    threads: int, users: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if users:
        monkeypatch.setenv("OMP_WAIT_POLICY", users)
    specs = planned("--threads", str(threads))
    assert specs["p0"].environment["OMP_NUM_THREADS"] == str(threads)
    for name in ("p0", "d0"):
        assert specs[name].environment.get("OMP_WAIT_POLICY") == expected
    assert specs["gateway"].environment.get("OMP_WAIT_POLICY") == users


def test_devices_are_dealt_round_robin() -> None:
    specs = planned("--prefill", "2", "--decode", "1", "--device", "cuda:0,cuda:1")
    devices = {name: told(spec).device for name, spec in specs.items() if name != "gateway"}  # type: ignore[union-attr]
    assert devices == {"p0": "cuda:0", "p1": "cuda:1", "d0": "cuda:0"}


def test_colocated_workers_prefill_locally() -> None:
    worker = told(planned("--colocated", "1")["c0"])
    assert isinstance(worker, DecodeSettings) and worker.local_prefill


@pytest.mark.parametrize(
    ("available", "workers", "threads", "expected"),
    [
        (1, 2, None, [(1, None), (1, None)]),
        (2, 2, None, [(1, None), (1, None)]),
        (9, 2, None, [(4, {0, 1, 2, 3}), (4, {4, 5, 6, 7})]),
        (4, 2, 3, [(3, None), (3, None)]),
    ],
)
def test_cores_are_shared_equally(
    available: int,
    workers: int,
    threads: int | None,
    expected: list[tuple[int, set[int] | None]],
) -> None:
    shares = cores.shares(list(range(available)), workers, threads)
    assert [(share.threads, share.pinned) for share in shares] == expected


def test_a_port_that_is_taken_is_not_available() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not ports.available("127.0.0.1", taken.getsockname()[1])
    assert ports.available("127.0.0.1", next(ports.free("127.0.0.1")))


def test_pauses_double_up_to_the_longest() -> None:
    patience = Patience(first_pause=0.5, longest_pause=3.0)
    assert [patience.pause(deaths) for deaths in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("flags", [[], ["--colocated", "1"]])
def test_a_relay_that_nobody_starts_is_refused_at_once(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        planned("--kv-transports", "relay", *flags)
    assert "--kv-transports relay: `baton up` starts no relay" in capsys.readouterr().err


def test_a_fleet_without_a_role_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in ((["--decode", "0"], "--decode 0"), (["--prefill", "0"], "--prefill 0")):
        with pytest.raises(SystemExit):
            planned(*flags)
        assert said in capsys.readouterr().err


def test_only_the_api_is_opened_with_it() -> None:
    """The admin port needs no key, and whoever reaches the gRPC port may be a worker."""
    gateway = told(planned("--host", "0.0.0.0")["gateway"])
    assert isinstance(gateway, GatewaySettings)
    assert (gateway.host, gateway.admin_host, gateway.rpc_host) == (
        *("0.0.0.0", "127.0.0.1", "127.0.0.1"),
    )
    specs = planned("--admin-host", "0.0.0.0", "--rpc-host", "10.0.0.1")
    gateway, worker = told(specs["gateway"]), told(specs["p0"])
    assert isinstance(gateway, GatewaySettings) and isinstance(worker, DecodeSettings)
    assert (gateway.admin_host, gateway.rpc_host) == ("0.0.0.0", "10.0.0.1")
    assert worker.join == "10.0.0.1:9002"
