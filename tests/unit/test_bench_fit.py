"""Fitting costs: what was measured of known costs gives them back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import costs, fit, records
from bench.costs import Costs
from bench.records import Record

TIMES = st.floats(1e-4, 1.0)


def measured(of: Costs) -> list[Record]:
    """What a machine of exactly these costs would show."""
    found = []
    for batch in (1, 8, 32):
        for context in (128, 2048):
            seconds = of.step_s + batch * (of.decode_s + context * of.context_token_s)
            params = {"threads": 1, "side": "bf16", "batch": batch, "context": context}
            found.append(Record("decode time", seconds * 1e3, "ms", params))
    for tokens in (128, 1024, 4096):
        seconds = tokens * of.prefill_token_s + tokens * (tokens - 1) / 2 * of.prefill_pair_s
        seconds += of.step_s * -(-tokens // 512)  # so many steps
        params = {"threads": 1, "side": "bf16", "tokens": tokens}
        found.append(Record("prefill time", seconds * 1e3, "ms", params))
    for mib in (4, 64, 256):
        seconds = of.transfer_s + mib * 2**20 / of.bytes_per_s
        params = {"path": "shm", "size MiB": mib}
        found.append(Record("throughput", mib * 2**20 / seconds / 1e9, "GB/s", params))
    return found


@given(TIMES, TIMES, TIMES, TIMES, TIMES)
def test_known_costs_come_back(
    step: float, decode: float, context: float, token: float, pair: float
) -> None:
    known = Costs(
        step_s=step,
        decode_s=decode,
        context_token_s=context * 1e-3,
        prefill_token_s=token,
        prefill_pair_s=pair * 1e-3,
        bytes_per_s=4e9,
        transfer_s=0.002,
    )
    found = measured(known)
    fitted, network = fit.of_engine(found, "bf16", 1), fit.of_kv(found, "shm")
    for name in ("step_s", "decode_s", "context_token_s", "prefill_token_s", "prefill_pair_s"):
        assert getattr(fitted, name) == pytest.approx(getattr(known, name), rel=1e-3)
    assert network.bytes_per_s == pytest.approx(4e9, rel=1e-6)
    assert network.transfer_s == pytest.approx(0.002, rel=1e-6)
    off = [one.value for one in fit.compared(fitted, found, "bf16", 1) if one.name == "off"]
    assert len(off) == 9 and max(map(abs, off)) < 0.1


def test_one_context_does_not_tell_what_a_token_of_it_costs() -> None:
    known = Costs(step_s=0.01, decode_s=0.001, prefill_token_s=5e-4, bytes_per_s=1e9)
    found = [one for one in measured(known) if one.params.get("context") != 2048]
    with pytest.raises(ValueError, match="one context alone"):
        fit.of_engine(found, "bf16", 1)


def test_a_prompt_takes_longer_than_its_steps() -> None:
    known = Costs(step_s=0.01, decode_s=0.001, prefill_token_s=5e-4, bytes_per_s=1e9)
    found = [
        replace(one, value=9.0) if one.params.get("tokens") == 128 else one
        for one in measured(known)
    ]
    with pytest.raises(ValueError, match=r"128 tokens takes 0.009 s, no longer .* 1 of 0.01 s"):
        fit.of_engine(found, "bf16", 1)


def test_it_says_what_there_is_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "engine.json", tmp_path / "costs.json"
    known = Costs(step_s=0.01, decode_s=0.001, prefill_token_s=5e-4, bytes_per_s=1e9)
    records.write(path, measured(known))
    with pytest.raises(SystemExit):
        fit.main(["--engine", str(path), "--side", "int8", "--out", str(out)])
    assert "side bf16, threads 1" in capsys.readouterr().err
    fit.main(["--engine", str(path), "--kv", str(path), "--out", str(out)])
    assert costs.read(out).step_s == pytest.approx(0.01, rel=1e-3)
    assert json.loads(out.read_text())["token_bytes"] == 23040
