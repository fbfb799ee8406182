"""What is read from a checkpoint, and how its faults are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from baton.errors import InvalidRequest
from gateway.tokenizer import CheckpointError, ModelTokenizer, load
from tests.fakes import ASSISTANT, CONTEXT, EOS, SYSTEM, USER, VOCAB_SIZE, ids, write_checkpoint

HELLO = [{"role": "user", "content": "hi"}]


def rewrite(path: Path, **fields: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**value, **fields}), encoding="utf-8")


async def chat(tokenizer: ModelTokenizer) -> tuple[int, ...]:
    return await tokenizer.encode_rendered(tokenizer.render_chat(HELLO))


async def test_a_whole_checkpoint(tmp_path: Path) -> None:
    tokenizer = load(str(write_checkpoint(tmp_path)))
    assert tokenizer.eos_ids == (EOS,)
    assert (tokenizer.context_length, tokenizer.vocab_size) == (CONTEXT, VOCAB_SIZE)
    assert await tokenizer.encode("hé") == tuple(ids("hé"))
    assert await chat(tokenizer) == (USER, *ids("hi"), ASSISTANT)
    long = "x" * 100_000
    assert await tokenizer.encode(long) == tuple(ids(long))


async def test_beginning_of_sequence_is_put_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    rewrite(folder / "tokenizer_config.json", bos_token={"content": "<|system|>"})
    assert await load(str(folder)).encode("a") == tuple(ids("a"))
    rewrite(folder / "tokenizer_config.json", add_bos_token=True)
    assert await load(str(folder)).encode("a") == (SYSTEM, *ids("a"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", SYSTEM)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    assert await load(str(folder)).encode("a") == (SYSTEM, *ids("a"))
    assert await chat(load(str(folder))) == (USER, *ids("hi"), ASSISTANT)


async def test_the_template_of_a_file_wins_and_has_what_templates_use(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{%- for m in messages %}\n  {{- m | tojson }}\n{%- endfor %}"
        "{{ strftime_now('') }}{{ eos_token }}",
        encoding="utf-8",
    )
    encoded = await chat(load(str(folder)))
    assert encoded == (*ids('{"role": "user", "content": "hi"}'), EOS)


async def test_templates_are_boxed_in_and_refuse_clearly(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages.append(1) }}", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        await chat(load(str(folder)))
    path.write_text("{{ raise_exception('no such role') }}", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="no such role"):
        await chat(load(str(folder)))
    path.write_text("{{ messages[7].content.x }}", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        await chat(load(str(folder)))
    path.write_text("{% for", encoding="utf-8")
    with pytest.raises(CheckpointError, match="line 1"):
        load(str(folder))


async def test_without_a_template_chat_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    rewrite(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(InvalidRequest, match="no chat template"):
        await chat(load(str(folder)))


def test_ends_of_sequence(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    rewrite(folder / "generation_config.json", eos_token_id=[3, 1])
    assert load(str(folder)).eos_ids == (1, 3, EOS)


def test_faults_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        load(str(tmp_path / "missing"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        load(str(tmp_path))
    folder = write_checkpoint(tmp_path, max_position_embeddings=None)
    with pytest.raises(CheckpointError, match=r"config\.json: max_position_embeddings is None"):
        load(str(folder))
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(str(folder))
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load(str(folder))
