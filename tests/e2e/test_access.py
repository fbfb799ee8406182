"""API keys on a real cluster: what the cache and the log tell, and to whom."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from baton.keys import ApiKey
from tests.e2e import client
from tests.e2e.cluster import Cluster, cluster

#: Tokens, so many that a prompt that is computed takes two seconds of the mock's time.
PROMPT = [7, *range(499)]
MOCK = ("--mock", "--mock-prefill-us", "4000", "--prefill", "1", "--decode", "1")


def key_file(folder: Path) -> tuple[Path, ApiKey, ApiKey]:
    alice, bob = ApiKey.new(), ApiKey.new()
    lines = [
        json.dumps({"name": name, "id": key.id, "hash": key.hash})
        for name, key in (("alice", alice), ("bob", bob))
    ]
    file = folder / "keys"
    file.write_text("\n".join(lines))
    return file, alice, bob


def ask(running: Cluster, key: ApiKey) -> tuple[int, float]:
    """Cached tokens of the prompt, and the seconds that it took."""
    began = time.monotonic()
    answer = httpx.post(
        f"{running.url}/v1/completions",
        json=client.body([token % 256 for token in PROMPT], 1),
        headers={"Authorization": f"Bearer {key.text}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached, time.monotonic() - began


@pytest.mark.parametrize("scope", ["key", "global"])
def test_one_key_learns_nothing_of_anothers_prompts(
    tiny_llama: Path, tmp_path: Path, scope: str
) -> None:
    file, alice, bob = key_file(tmp_path)
    with cluster(tiny_llama, *MOCK, "--api-keys", str(file), "--cache-scope", scope) as running:
        assert httpx.post(f"{running.url}/v1/completions", json={}, timeout=60).status_code == 401
        computed = 4000e-6 * len(PROMPT)
        cached, seconds = ask(running, alice)
        assert cached == 0
        assert seconds > 0.9 * computed
        cached, seconds = ask(running, alice)
        assert cached > 400
        assert seconds < 0.8 * computed
        cached, seconds = ask(running, bob)
        if scope == "key":
            assert cached == 0
            assert seconds > 0.9 * computed
        else:
            assert cached > 400
            assert seconds < 0.8 * computed


def test_no_prompt_and_no_key_is_in_the_log(tiny_llama: Path, tmp_path: Path) -> None:
    file, alice, _ = key_file(tmp_path)
    secret = "the-password-is-wombat"
    with cluster(tiny_llama, "--mock", "--api-keys", str(file)) as running:
        stranger = ApiKey(alice.id, "a-wrong-secret-0123456789")
        for key, status in ((alice, 200), (stranger, 401)):
            headers = {"Authorization": f"Bearer {key.text}"}
            for body, worse in (
                (client.body(secret, 3), 200),
                (client.body(secret, 3, stop=[secret]), 200),
                (client.body(secret, 3, temperature=secret), 400),
                (client.body(secret, 3, wombat=secret), 400),
                (client.body(secret * 5000, 3), 400),
            ):
                url = f"{running.url}/v1/completions?q={secret}"
                answer = httpx.post(
                    url, json=body, headers=headers | {"X-Note": secret}, timeout=60
                )
                assert answer.status_code == (worse if status == 200 else status)
    printed = running.output
    assert "ready" in printed
    for hidden in (secret, "wombat", alice.secret, stranger.secret, alice.hash):
        assert hidden not in printed
