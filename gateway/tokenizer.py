"""What the gateway needs of a checkpoint: tokenizer, chat template, ends of sequence, context."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from tokenizers import Tokenizer

from baton.errors import ContextLengthExceeded, InvalidRequest
from gateway.chat_template import ChatTemplate, Message
from gateway.detokenizer import Detokenizer, Vocabulary, detokenizer

T = TypeVar("T")

#: Longer texts are tokenised off the event loop: about a millisecond's worth of work.
_LONG_TEXT = 4096

#: Of a longer request what is not tokenising is done off it as well.
_LONG_BODY = 32_768

#: A text of so many times the characters that its longest tokens could cover is refused unread;
#: the factor leaves room for normalisers that shrink a text.
_SHRINK = 8

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class CheckpointError(Exception):
    """A file of the checkpoint is missing or cannot be read; the message names it."""


@dataclass(frozen=True, slots=True)
class ModelTokenizer:
    """Text to ids and back, as the checkpoint has it. Made by ``load``."""

    vocabulary: Vocabulary
    chat_template: ChatTemplate | None
    #: Put before a text when the tokenizer's own post-processor does not.
    prepend: tuple[int, ...]
    eos_ids: tuple[int, ...]
    context_length: int
    vocab_size: int
    #: One long text at a time: each takes a core, and many times its size in memory.
    _long: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Ids of a plain text; ``special``: with whatever the tokenizer itself puts around it."""
        return (*(self.prepend if special else ()), *await self._encode(text, special=special))

    async def encode_rendered(self, prompt: str) -> tuple[int, ...]:
        """Ids of what ``render_chat`` gave: the template says where special tokens go, nothing is
        added."""
        return await self._encode(prompt, special=False)

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text; see ``ChatTemplate.render``.

        Raises InvalidRequest without a template, or when the template refuses.
        """
        if self.chat_template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions")
        if len(messages) > self.context_length:
            raise ContextLengthExceeded(
                f"there are {len(messages)} messages, but the context length is "
                f"{self.context_length} tokens",
                param="messages",
            )
        return self.chat_template.render(messages, tools, arguments)

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of known ids, special tokens included."""
        decode = partial(self.vocabulary.tokenizer.decode, ids, skip_special_tokens=False)
        return await self.apart(len(ids), decode)

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one answer."""
        return detokenizer(self.vocabulary)

    async def aside(self, characters: int, work: Callable[[], T]) -> T:
        """Do what takes time for each of so many characters, likewise."""
        if characters <= _LONG_BODY:
            return work()
        async with self._long:
            return await asyncio.to_thread(work)

    async def apart(self, tokens: int, work: Callable[[], T]) -> T:
        """Do what takes time for each of so many tokens: off the event loop when they are many."""
        if tokens <= _LONG_TEXT // 4:
            return work()
        async with self._long:
            return await asyncio.to_thread(work)

    async def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Raises ContextLengthExceeded for what could not fit, however it is tokenised."""
        tokenizer, most = self.vocabulary.tokenizer, self.context_length * self.vocabulary.longest
        if len(text) <= _LONG_TEXT:
            return tuple(tokenizer.encode(text, add_special_tokens=special).ids)
        if len(text) > _SHRINK * most:
            raise ContextLengthExceeded(
                f"the prompt has {len(text)} characters, but the context length is "
                f"{self.context_length} tokens of at most {self.vocabulary.longest} characters"
            )
        # The batch call lets other threads run meanwhile; the plain one does not.
        encode = partial(tokenizer.encode_batch_fast, [text], add_special_tokens=special)
        async with self._long:
            [encoding] = await asyncio.to_thread(encode)
        return tuple(encoding.ids)


def load(model: str) -> ModelTokenizer:
    """From a Hugging Face directory or a hub id. Raises CheckpointError naming the file."""
    folder = _folder(model)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the gateway needs a fast tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path}: {error}") from error
    config = _json(folder / "tokenizer_config.json")
    architecture = _json(folder / "config.json")
    generation = _json(folder / "generation_config.json")
    special = {name: text for name in _SPECIAL_TOKENS if (text := _content(config.get(name)))}
    return ModelTokenizer(
        vocabulary=Vocabulary.of(tokenizer),
        chat_template=_chat_template(folder, config, special),
        prepend=_prepend(tokenizer, config, special),
        eos_ids=_eos_ids(tokenizer, special, generation, architecture),
        context_length=_context_length(folder, architecture),
        vocab_size=architecture.get("vocab_size") or tokenizer.get_vocab_size(),
    )


def _folder(model: str) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model}: neither a directory nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except Exception as error:
        raise CheckpointError(f"{model}: cannot be fetched from the hub: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _content(token: object) -> str:
    """A special token's text: given as a string, or as an object with ``content``."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else ""


def _chat_template(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, str]
) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if source is None:
        return None
    try:
        return ChatTemplate(source, special)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"{folder}: chat template, line {error.lineno}: {error}") from error


def _prepend(
    tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]
) -> tuple[int, ...]:
    bos = tokenizer.token_to_id(special.get("bos_token", ""))
    if not config.get("add_bos_token") or bos is None or bos in tokenizer.encode("").ids:
        return ()
    return (bos,)


def _eos_ids(
    tokenizer: Tokenizer,
    special: Mapping[str, str],
    generation: Mapping[str, Any],
    architecture: Mapping[str, Any],
) -> tuple[int, ...]:
    """What the generation config says, else the config; and the tokenizer's own in any case."""
    said = generation.get("eos_token_id", architecture.get("eos_token_id"))
    ids = set(said if isinstance(said, list) else [] if said is None else [said])
    own = tokenizer.token_to_id(special.get("eos_token", ""))
    return tuple(sorted(ids if own is None else ids | {own}))


def _context_length(folder: Path, architecture: Mapping[str, Any]) -> int:
    length = architecture.get("max_position_embeddings")
    if not isinstance(length, int) or length < 2:
        raise CheckpointError(f"{folder / 'config.json'}: max_position_embeddings is {length!r}")
    return length
