"""Who a certificate names, who may call what, and which files are refused, with which words."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from baton import cli
from baton.settings import DecodeSettings, PrefillSettings
from baton.tls.authority import Authority, Issued
from baton.tls.files import BadCertificate, Files
from baton.tls.gate import allowed
from baton.tls.names import PARTIES, Name, Party, name, names_in
from baton.tls.refusals import QUIET, Refusals
from baton.v1 import decode_pb2, kv_pb2, membership_pb2, prefill_pb2, worker_pb2
from tests.tls import needs_openssl


def test_names_in_uris() -> None:
    assert names_in(
        [
            "spiffe://baton.internal/baton/prefill/p-0",
            "spiffe://baton.internal/baton/worker/p-0",  # a name to dial, no role
            "spiffe://baton.internal/baton/prefill/",
            "spiffe://baton.internal/baton/prefill/p/0",
            "spiffe://baton.internal/other/prefill/p-0",
            "https://baton.internal/baton/prefill/p-0",
        ]
    ) == {Name("baton.internal", Party.PREFILL, "p-0")}


def test_hosts_say_the_role_and_whether_it_is_a_worker() -> None:
    assert Name("x.y", Party.DECODE, "d").hosts == ["decode.x.y", "worker.x.y"]
    assert Name("x.y", Party.GATEWAY, "g").hosts == ["gateway.x.y"]


@pytest.mark.parametrize(("domain", "id"), [("x", "a/b"), ("x", ""), ("X,DNS:y", "a"), ("", "a")])
def test_names_that_no_certificate_could_carry(domain: str, id: str) -> None:
    with pytest.raises(ValueError, match="spiffe://"):
        name(domain, Party.PREFILL, id)


def methods() -> Iterator[str]:
    """Every RPC of every service that a Baton process serves."""
    for module in (decode_pb2, kv_pb2, membership_pb2, prefill_pb2, worker_pb2, health_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"


@pytest.mark.parametrize("method", list(methods()))
def test_every_method_is_for_somebody(method: str) -> None:
    assert allowed(method)


@pytest.mark.parametrize(
    ("method", "who"),
    [
        ("/baton.v1.PrefillService/Prefill", {Party.DECODE, Party.RELAY}),
        ("/baton.v1.KvService/Read", {Party.DECODE, Party.RELAY}),
        ("/baton.v1.DecodeService/Session", {Party.GATEWAY}),
        ("/baton.v1.WorkerService/Watch", {Party.GATEWAY, Party.RELAY, Party.ADMIN}),
        ("/baton.v1.WorkerService/Drain", {Party.GATEWAY, Party.ADMIN}),
        ("/baton.v1.MembershipService/Join", {Party.PREFILL, Party.DECODE}),
        ("/grpc.health.v1.Health/Check", PARTIES),
        ("/baton.v1.Unheard/Of", set()),
    ],
)
def test_who_may_call_what(method: str, who: set[Party]) -> None:
    assert allowed(method) == who


def files(issued: Issued, party: Party = Party.PREFILL) -> Files:
    return Files(issued.certificate, issued.key, issued.authorities, party)


@needs_openssl
def test_a_certificate_may_name_several_roles(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("w", [Party.PREFILL, Party.DECODE])
    for party in (Party.PREFILL, Party.DECODE):
        assert files(issued, party).current().name == Name("baton.internal", party, "w")


@needs_openssl
@pytest.mark.parametrize("wrong", ["role", "authority", "key", "expired", "cut", "gone"])
def test_files_that_are_not_right_are_refused_at_the_start(wrong: str, tmp_path: Path) -> None:
    here, there = Authority(tmp_path / "here"), Authority(tmp_path / "there")
    good, other = here.issue("p0", [Party.PREFILL]), there.issue("p0", [Party.PREFILL])
    issued, said = {
        "role": (here.issue("d0", [Party.DECODE]), "names decode 'd0'; this process needs URI:"),
        "authority": (
            Issued(good.certificate, good.key, other.authorities),
            "certificate signature failure|unable to get local issuer|self.signed",
        ),
        "key": (Issued(good.certificate, other.key, good.authorities), "KEY_VALUES_MISMATCH"),
        "expired": (here.issue("old", [Party.PREFILL], days=-1), "certificate has expired"),
        "cut": (Issued(good.certificate, tmp_path / "empty", good.authorities), "--tls-key"),
        "gone": (Issued(tmp_path / "no", good.key, good.authorities), "--tls-cert .*no: No such"),
    }[wrong]
    (tmp_path / "empty").touch()
    with pytest.raises(BadCertificate, match=said):
        files(issued)


@needs_openssl
@pytest.mark.parametrize(
    ("role", "fits"),
    [("prefill", "p"), ("decode", "d"), ("both", "pd")],
)
def test_a_worker_of_any_role_needs_the_roles_that_it_begins_with(
    role: str, fits: str, tmp_path: Path
) -> None:
    settings = DecodeSettings(model="m", role=role)  # type: ignore[arg-type]
    kinds = {"p": [Party.PREFILL], "d": [Party.DECODE], "pd": [Party.PREFILL, Party.DECODE]}
    for kind, parties in kinds.items():
        issued = Authority(tmp_path).issue("w", parties)
        paths = (issued.certificate, issued.key, issued.authorities)
        if set(fits) <= set(kind):
            assert Files(*paths, *settings.parties).current().parties == set(parties)
        else:
            with pytest.raises(BadCertificate, match="this process needs URI"):
                Files(*paths, *settings.parties)


@needs_openssl
def test_replaced_files_are_used_once_they_go_together(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "now")
    used = files(authority.issue("p0", [Party.PREFILL]))
    before = used.current()
    assert used.current() is before, "unchanged files are not read"
    later = Authority(tmp_path / "later").issue("p0", [Party.PREFILL])
    for half in ("p0.pem", "p0.key"):
        (later.certificate.parent / half).replace(tmp_path / "now" / half)
        with capture_logs() as logs:
            assert used.current() is before
        assert [line["event"] for line in logs] == ["certificate not read anew"]
        with capture_logs() as logs:
            assert used.current() is before
        assert not logs, "said once"
    later.authorities.replace(tmp_path / "now" / "ca.pem")
    assert used.current().generation == before.generation + 1
    assert used.current().certificate != before.certificate


@needs_openssl
def test_files_that_are_gone_leave_what_there_was(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("p0", [Party.PREFILL])
    used = files(issued)
    before = used.current()
    issued.key.unlink()
    assert used.current() is before


@needs_openssl
def test_certs_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert cli.main(["certs", str(folder), "--role", "prefill", "--id", "p0"]) == 0
    flags = capsys.readouterr().out.split()
    settings = PrefillSettings(model="m", **_as_settings(flags))
    assert settings.tls_files is not None
    assert Files(*settings.tls_files, settings.party).current().name.id == "p0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for key in folder.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert cli.main(["certs", str(folder), "--role", "prefill", "--id", "p/0"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def _as_settings(flags: list[str]) -> dict[str, Path]:
    names = (flag.removeprefix("--").replace("-", "_") for flag in flags[::2])
    return dict(zip(names, map(Path, flags[1::2]), strict=True))


def test_what_is_refused_again_and_again_is_counted_but_rarely_logged() -> None:
    now = 0.0
    refusals = Refusals(lambda: now)
    with capture_logs() as logs:
        for _ in range(150):
            refusals.add("wrong_role", "p0 is no d", peer="ipv4:1")
            refusals.add("no_call", "nobody", 2)
            now += 1.0
    assert refusals.counts == {"wrong_role": 150, "no_call": 300}
    said = [(line["reason"], line["times"]) for line in logs]
    assert said == [
        *(("p0 is no d", 1), ("nobody", 2)),
        *(("p0 is no d", QUIET), ("nobody", 2 * QUIET)) * 2,
    ]


def test_what_others_send_is_not_kept_for_ever() -> None:
    refusals = Refusals(lambda: 0.0)
    with capture_logs() as logs:
        for number in range(3 * 256):
            refusals.add("wrong_id", f"registered at {number}")
        refusals.add("wrong_id", "registered at 0")
    assert len(logs) == 3 * 256 + 1, "forgotten, so said again"


TLS = {name: Path("x.pem") for name in ("tls_cert", "tls_key", "tls_ca")}


def test_half_of_tls_is_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        DecodeSettings(model="m", tls_cert=Path("x.pem"))


def test_with_tls_what_cannot_encrypt_is_withheld() -> None:
    assert not DecodeSettings(model="m").unencrypted_kv
    assert "cannot encrypt" in DecodeSettings(model="m", **TLS).unencrypted_kv
    assert not DecodeSettings(model="m", **TLS, kv_allow_unencrypted=True).unencrypted_kv
    with pytest.raises(ValueError, match="--kv-transports nixl: it cannot encrypt"):
        DecodeSettings(model="m", **TLS, kv_transports=["nixl"])
