"""One setting, three places to give it; a mistake is one line that names the flag."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from baton.configure import load
from baton.settings import DecodeSettings, GatewaySettings, PrefillSettings

GATEWAY = ["--model", "m", "--decode", "a:1,b:2"]


def test_flag_beats_environment_beats_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text("port: 1\nadmin_port: 2\nmax_queue_tokens: 3\n")
    monkeypatch.setenv("BATON_ADMIN_PORT", "20")
    monkeypatch.setenv("BATON_MAX_QUEUE_TOKENS", "30")
    argv = [*GATEWAY, "--config", str(file), "--max-queue-tokens", "300"]
    settings = load(GatewaySettings, argv, "gateway")
    assert (settings.port, settings.admin_port, settings.max_queue_tokens) == (1, 20, 300)
    assert settings.decode == ["a:1", "b:2"]


def test_lists_from_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text("model: m\nprefill: [p:1, p:2]\n")
    monkeypatch.setenv("BATON_DECODE", "d:1,d:2")
    settings = load(GatewaySettings, ["--config", str(file)], "gateway")
    assert settings.prefill == ["p:1", "p:2"]
    assert settings.decode == ["d:1", "d:2"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model", "m", "--port", "99999"], "--port: .*65535.*99999"),
        (["--model", "m", "--block-size", "0"], "--block-size: .*greater than or equal to 1"),
        (["--port", "1"], "--model is missing: give --model a Hugging Face directory, such as"),
        (["--model", "m", "--dtype", "int3"], "--dtype: .*float32"),
        (["--model", "m", "--device", "gpu"], "--device: must be cpu, or cuda:N.*given: 'gpu'"),
        (["--model", "m", "--advertise", "a"], "--advertise: must be HOST:PORT.*given: 'a'"),
        (["--model", "m", "--kv-transports", "shm,tcp"], "--kv-transports: .*'nixl'.*'tcp'"),
        (["--model", "m", "--otlp-endpoint", "a:1"], "--otlp-endpoint: must begin with http://"),
        (["--model", "m", "--mock-costs", "f"], "--mock-costs needs --mock"),
        (
            ["--model", "m", "--mock", "--mock-costs", "f", "--mock-step-ms", "1"],
            "--mock-costs says what --mock-step-ms would",
        ),
    ],
)
def test_mistakes_are_one_line_each(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load(PrefillSettings, argv, "prefill_worker")
    assert exit_info.value.code == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1

    assert re.search(said, printed)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--placement-weights", "cache=1,load=2"], "name cache, load and transfer once"),
        (["--placement-weights", "cache=x,load=1,transfer=1"], "cache is 'x', but must"),
        (
            ["--placement-weights", "cache=1,load=-1,transfer=1"],
            "load is -1, but must be",
        ),
        (["--placement", "random"], "--placement: .*'least-queued'.*random"),
    ],
)
def test_mistakes_in_placement(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load(GatewaySettings, [*GATEWAY, *argv], "gateway")
    assert re.search(said, capsys.readouterr().err)


def test_a_gateway_without_workers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(GatewaySettings, ["--model", "m"], "gateway")
    assert "--decode names no worker" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        load(GatewaySettings, ["--model", "m", "--decode", "a:7001,b"], "gateway")
    assert "--decode: must be HOST:PORT" in capsys.readouterr().err


def test_an_unknown_flag_is_told_what_it_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, said in (("--num-block", "(is --num-blocks meant?)"), ("--tp", "arguments: --tp 5")):
        with pytest.raises(SystemExit):
            load(PrefillSettings, ["--model", "m", flag, "5"], "prefill_worker")
        assert capsys.readouterr().err.rstrip().endswith(said)


def test_an_unknown_key_in_the_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text("prot: 1\n")
    with pytest.raises(SystemExit):
        load(GatewaySettings, [*GATEWAY, "--config", str(file)], "gateway")
    assert "--prot: this process has no such setting" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["flag", "environment", "file"])
def test_a_setting_that_is_no_more_is_refused_with_its_successor(
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the environment too, where other names are not looked at."""
    argv = ["--model", "m"]
    if where == "flag":
        argv += ["--local-prefill-share", "0.3"]
    elif where == "environment":
        monkeypatch.setenv("BATON_LOCAL_PREFILL_SHARE", "0.3")
    else:
        (tmp_path / "baton.yaml").write_text("local_prefill_share: 0.3\n")
        argv += ["--config", str(tmp_path / "baton.yaml")]
    with pytest.raises(SystemExit):
        load(DecodeSettings, argv, "decode_worker")
    said = capsys.readouterr().err
    assert "no such setting any more; give --itl-target-ms" in said
    assert said.count("\n") == 1


def test_help_gives_lists_as_one_would(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(PrefillSettings, ["--help"], "prefill_worker")
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: shm," in printed and "default: [" not in printed


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--kv-transports", "shm,shm"], "--kv-transports shm,shm: shm is named 2 times"),
        (["--kv-transports", "relay,shm"], "--kv-transports relay,shm: relay .* comes last"),
        (["--relay", "nonsense"], "--relay: must be HOST:PORT.*given: 'nonsense'"),
        (["--relay", ":8100"], "--relay: must be HOST:PORT.*given: ':8100'"),
        (["--relay", "r:0"], "--relay: .* a port from 1 to 65535.*given: 'r:0'"),
        (["--relay", "::1:8100"], "--relay: .* IPv6 host in brackets.*given: '::1:8100'"),
    ],
)
def test_a_way_for_kv_that_cannot_be_is_refused_at_start(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load(DecodeSettings, ["--model", "m", *argv], "decode_worker")
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("address", ["r:8100", "10.0.0.1:1", "[::1]:65535", "relay.example:80"])
def test_where_a_relay_can_be(address: str) -> None:
    settings = load(DecodeSettings, ["--model", "m", "--relay", address], "decode_worker")
    assert settings.relay == address


def test_how_kv_is_read_is_the_decode_workers_affair(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "m", "--kv-checksums", "on", "--kv-stripes", "4"]
    settings = load(DecodeSettings, flags, "decode_worker")
    assert (settings.kv_checksums, settings.kv_stripes) == ("on", 4)
    with pytest.raises(SystemExit):
        load(PrefillSettings, flags, "prefill_worker")
    assert "kv-checksums" in capsys.readouterr().err
