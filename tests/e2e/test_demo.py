"""``baton up`` as a person meets it: it starts, answers, stops, and says why when it cannot."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.e2e import client
from tests.e2e.cluster import DEMO, MODEL, Cluster, cluster, until


def _question(text: str) -> dict[str, object]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 200,
    }


async def test_an_answer_streams_and_stops_by_itself(demo: Cluster) -> None:
    pieces = 0
    answer = client.Answer()
    async with client.connect(demo.url) as http:
        async for current in client.stream(
            http, _question("What is prefill?"), "/v1/chat/completions"
        ):
            answer, pieces = current, pieces + 1
    assert answer.finish == "stop", answer
    assert "prefill" in answer.text.lower()
    assert pieces > 5, "on a busy machine several tokens share a piece"


def test_the_printed_curl_line_works(demo: Cluster) -> None:
    line = next(line for line in demo.lines if line.startswith("curl -N "))
    printed = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert printed.returncode == 0
    assert '"finish_reason":"stop"' in printed.stdout
    assert printed.stdout.rstrip().endswith("data: [DONE]")


def test_every_process_logs_under_its_name(demo: Cluster) -> None:
    assert {"p0", "d0"} <= {line.split("|")[0].strip() for line in demo.lines if "|" in line}
    assert {"p0", "d0", "gateway"} == demo.processes.keys()


def test_ctrl_c_stops_everything(tiny_llama: Path) -> None:
    with cluster(tiny_llama, "--mock") as running:
        everyone = list(running.processes.values())
        assert running.stop(signal.SIGINT) == 0
        assert not [process for process in everyone if process.alive]
        assert "stopped" in running.lines[-1]


def test_no_child_outlives_a_killed_parent(tiny_llama: Path) -> None:
    running = Cluster(
        [
            "--model",
            str(tiny_llama),
            "--mock",
            "--port",
            "0",
            "--admin-port",
            "0",
            "--rpc-port",
            "0",
        ]
    )
    assert running.url
    everyone = list(running.processes.values())
    assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not any(process.alive for process in everyone), 60.0, "all children gone")


def test_a_dead_worker_is_reported_and_started_again(tiny_llama: Path) -> None:
    with cluster(tiny_llama, "--mock") as running:
        before = running.processes["d0"]
        before.send(signal.SIGKILL)
        until(lambda: running.processes["d0"] != before, 60.0, "d0 ready again")
        assert running.processes["d0"].address == before.address
        assert "d0 died: killed by SIGKILL (out of memory?); again in 0.5 s" in running.output


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(DEMO, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    running = Cluster(
        ["--model", str(broken), "--port", "0", "--admin-port", "0", "--rpc-port", "0"]
    )
    assert running.wait(120.0) == 1
    said = running.lines[-1]
    assert re.match(r"baton up: [pd]0 \(\w+\) could not start: .*model\.safetensors", said), said


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        running = Cluster(["--model", str(DEMO), "--port", port])
        assert running.wait(60.0) == 1
    assert f"--port {port} is in use" in running.lines[-1]


def test_a_mistaken_flag_is_named() -> None:
    running = Cluster(["--model", str(DEMO), "--block-size", "0"])
    assert running.wait(60.0) == 2
    assert running.lines[-1].startswith("baton up: --block-size: ")
