"""The benchmark of a GPU, with a tiny model on the CPU: every figure, each where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu import LLAMA_1B, LLAMA_8B, _operations, main


def test_every_side_and_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--model", "tiny", "--steps", "2", "--json", str(out)]
    assert main([*arguments, "--batch", "1,3", "--context", "20", "--tokens", "40"]) == 0
    found = json.loads(out.read_text())
    cases = {tuple(r["params"].get(key) for key in ("side", "phase", "batch")) for r in found}
    assert cases == {("hardware", None, None)} | {
        (side, phase, batch)
        for side in ("baton", "transformers")
        for phase, batch in (("decode", 1), ("decode", 3), ("prefill", 1))
    }
    assert all(record["value"] > 0 for record in found)
    assert "of the limit" in capsys.readouterr().out


def test_arithmetic_is_twice_the_weights_and_attention() -> None:
    # 6.98 and 0.97 billion weights without embedding and head.
    assert _operations(LLAMA_8B, 1) == pytest.approx(2 * 6.98e9, rel=1e-3)
    assert _operations(LLAMA_1B, 1) == pytest.approx(2 * 0.973e9, rel=1e-3)
    whole = _operations(LLAMA_1B, 1024) / 1024 - _operations(LLAMA_1B, 1)
    assert whole == pytest.approx(16 * 2 * 1023 * 2048)


def test_a_device_that_is_not_there_is_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([]) == 1
    assert "finds no GPU here" in capsys.readouterr().err
