"""API keys: made by the command, read from the file, let in or not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from baton import cli
from baton.errors import InvalidApiKey
from baton.keys import ApiKey
from gateway.keys import KeyFileError, Keys, read


def new(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """A key and its line, as the command prints them."""
    assert cli.main(["keys", "new", *arguments]) == 0
    key, line = capsys.readouterr().out.splitlines()
    return key, line


@pytest.mark.parametrize(
    "arguments",
    [("a b",), ("a", "--concurrent", "0"), ("a", "--requests-per-minute", "inf"),
     ("a", "--best-priority", "-101")],
)  # fmt: skip
def test_a_key_that_no_gateway_would_take_is_not_made(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert cli.main(["keys", "new", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"^baton keys new: (name|concurrent|requests-per|best-p).*given: ", said.err)


def test_a_key_that_was_made_is_let_in(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key, line = new(capsys, "alice", "--concurrent", "3", "--tokens-per-minute", "1000")
    other, _ = new(capsys, "bob")
    assert key[24:] not in line, "only its hash is kept"
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{line}\n")
    [read_back] = read(file)
    assert (read_back.name, read_back.limits.concurrent) == ("alice", 3)
    keys = Keys([read_back], "key", lambda: 0.0)
    assert keys.caller(f"Bearer {key}").name == "alice"
    assert keys.caller(f"bearer  {key} ").name == "alice"
    for wrong in (
        other,
        key + "x",
        key[:-1],
        key.swapcase(),
        f"sk-{key[3:19]}-{'A' * 43}",
        "sk--",
        "none",
        "é" * 60,
    ):
        with pytest.raises(InvalidApiKey, match=r"known|needed") as refused:
            keys.caller(f"Bearer {wrong}")
        assert wrong not in refused.value.message
    for wrong in ("", "Bearer", key, f"Basic {key}"):
        with pytest.raises(InvalidApiKey, match="needed"):
            keys.caller(wrong)


def line(name: str, key: ApiKey, **limits: object) -> str:
    return json.dumps({"name": name, "id": key.id, "hash": key.hash, **limits})


A, B = ApiKey.new(), ApiKey.new()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it has no key"),
        ("# nothing\n", "it has no key"),
        ("{", "line 1:.*JSON"),
        (line("a", A) + "\n" + line("b", A), "line 2: id .* twice"),
        (line("a", A) + "\n" + line("a", B, concurrent=1), "line 2: a has other limits"),
        (line("a b", A), "line 1: name"),
        (line("a", A, concurrent=0), "line 1: concurrent: .*greater"),
        (line("a", A, requests_per_minute=float("inf")), "line 1: requests_per_minute"),
        (line("a", A, best_priority=-101), "line 1: best_priority: .*greater"),
        (line("a", A, wombat=1), "line 1: wombat"),
        ('{"name": "a", "id": "x", "hash": "secret-by-mistake"}', "line 1: id"),
    ],
)
def test_a_file_with_mistakes_says_where(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(KeyFileError, match=says) as mistake:
        read(file)
    assert "secret-by-mistake" not in str(mistake.value)
    with pytest.raises(KeyFileError, match="No such file"):
        read(tmp_path / "nowhere")


def test_names_have_a_salt_of_their_own_and_successors_share_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    successor = ApiKey.new()
    file.write_text("\n".join([line("a", A), line("b", B), line("a", successor)]))
    scoped = Keys(read(file), "key", lambda: 0.0)
    a, b, again = (scoped.caller(f"Bearer {key.text}") for key in (A, B, successor))
    assert a is again
    assert len({a.cache_salt, b.cache_salt, b""}) == 3
    elsewhere = Keys(read(file), "key", lambda: 0.0)
    assert elsewhere.caller(f"Bearer {A.text}").cache_salt == a.cache_salt
    shared = Keys(read(file), "global", lambda: 0.0)
    assert shared.caller(f"Bearer {A.text}").cache_salt == b""


def test_replaced_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line("a", A, concurrent=1) + "\n" + line("b", B))
    keys = Keys(read(file), "key", lambda: 0.0)
    before = keys.caller(f"Bearer {A.text}")
    file.write_text(line("a", A, concurrent=2))
    keys.replace(read(file))
    assert keys.caller(f"Bearer {A.text}") is before
    with before.quota.request(), before.quota.request():
        pass
    with pytest.raises(InvalidApiKey):
        keys.caller(f"Bearer {B.text}")
