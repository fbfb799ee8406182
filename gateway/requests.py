"""The request type the gateway works with, made from a wire request that keeps every limit."""

from __future__ import annotations

import asyncio
import hashlib
import reprlib
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from baton.deadlines import Deadlines
from baton.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
)
from baton.sampling import MAX_TOKENS, SamplingSpec
from gateway import fields, resume
from gateway.fields import MAX_CHOICES
from gateway.keys import Caller
from gateway.messages import as_dicts
from gateway.output import Offer, Output
from gateway.reply import Reply
from gateway.resume import Resume
from gateway.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    PhaseDeadlines,
)
from gateway.tokenizer import ModelTokenizer

Kind = Literal["chat", "completion", "response"]
_ID_PREFIX: Mapping[Kind, str] = {"chat": "chatcmpl-", "completion": "cmpl-", "response": "resp_"}

#: As many as OpenAI takes. They travel with every attempt and are looked at in every step.
MAX_LOGIT_BIASES = 300
#: Seeds drawn here survive any JSON reader, which may know only doubles.
_DRAWN_SEED_BITS = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidRequest:
    """What to generate, ``n`` times. Everything is in range and fits the fleet."""

    request_id: str
    created: int  #: seconds since 1970
    kind: Kind
    model: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingSpec
    stop: tuple[str, ...]
    deadlines: Deadlines
    caller: Caller
    n: int = 1  #: choices: answers to the one prompt, drawn independently
    first_choice: int = 0  #: index of the first: other prompts of its HTTP request have others
    echo: str = ""  #: shown before each answer
    echo_grammar: str = ""  #: holds an answer to the prompt but for its first token, to score it
    generates: bool = True  #: else it ends before its first token
    resume: Resume | None = None  #: of an answer that another gateway began
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False  #: with every chunk, not only in the last
    return_token_ids: bool = False
    priority: int = 0  #: larger goes first, as between workers; on the wire it is smaller
    session: str = ""  #: what the client calls the conversation, or itself; for placement alone
    traceparent: str = ""
    reply: Reply = field(default_factory=Reply)  #: how the answer's text is to be read

    def call_id(self, choice: int, call: int) -> str:
        """Of a tool call, the same at every gateway that goes on with the answer."""
        drawn = f"{self.sampling.seed} {self.prompt_digest} {choice} {call}".encode()
        return "call_" + hashlib.blake2b(drawn, digest_size=12).hexdigest()

    @property
    def scores_echo(self) -> bool:
        """Whether the prompt's log probabilities are shown with it."""
        return bool(self.echo) and self.sampling.logprobs is not None

    @property
    def prompt_digest(self) -> str:
        """blake2b-128 of the prompt's ids as 32-bit little endian, hex: proves a resumed prompt."""
        return _digest(self.prompt_ids)

    @property
    def generated_ids(self) -> tuple[int, ...]:
        """What its client has of the answer already."""
        return () if self.resume is None else self.resume.generated_ids

    @property
    def choices(self) -> range:
        """Indices of the choices to generate."""
        first = self.first_choice if self.resume is None else self.resume.choice
        return range(first, first + self.n)


def _digest(ids: Sequence[int]) -> str:
    return hashlib.blake2b(struct.pack(f"<{len(ids)}I", *ids), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the model and the fleet can hold, in tokens; None where no worker has said it yet."""

    context: int  #: prompt and answer, by the model
    sequence: int | None = None  #: prompt and answer, by the decode workers' KV pools
    prompt: int | None = None  #: prompt, by the prefill workers' KV pools

    def fill(self, prompt: int, max_tokens: int | None) -> int:
        """max_tokens; what is left below the limits when it was not given.

        Raises ContextLengthExceeded naming both numbers.
        """
        for limit, what in (
            (self.context, "the model's context length"),
            (self.sequence, "the decode workers' KV pool, in tokens,"),
        ):
            if limit is not None and prompt + (max_tokens or 1) > limit:
                raise ContextLengthExceeded(_too_long(prompt, max_tokens, what, limit))
        if self.prompt is not None and prompt > self.prompt:
            what = "the prefill workers' KV pool, in tokens,"
            raise ContextLengthExceeded(_too_long(prompt, None, what, self.prompt))
        if max_tokens is not None:
            return max_tokens
        return min(self.context, self.sequence or self.context) - prompt


def _too_long(prompt: int, max_tokens: int | None, what: str, limit: int) -> str:
    if max_tokens is None:
        return (
            f"the prompt has {prompt} tokens, which leaves no room for an answer: {what} is {limit}"
        )
    return (
        f"the prompt has {prompt} tokens and max_tokens is {max_tokens}, together "
        f"{prompt + max_tokens}, but {what} is {limit}"
    )


class Validator:
    """Makes valid requests of wire requests."""

    def __init__(
        self, served_model: str, tokenizer: ModelTokenizer, output: Output, deadlines: Deadlines
    ) -> None:
        self._served_model = served_model
        self._tokenizer = tokenizer
        self._output = output
        self._deadlines = deadlines

    async def chat(
        self,
        wire: ChatRequest,
        limits: Limits,
        caller: Caller,
        traceparent: str,
        size: int,
        kind: Kind = "chat",
    ) -> ValidRequest:
        """``size``: of the request, in bytes, whatever it is that takes them.

        Raises a RequestError that names the field, the value and the limit.
        """
        self.require_model(wire.model)
        offer, prompt, prompt_ids = await self.conversation(wire, size)
        grammar, reply = self._output.plan(offer, prompt)
        if wire.max_tokens is not None and wire.max_completion_tokens is not None:
            raise InvalidRequest(
                "'max_tokens' and 'max_completion_tokens' are the same; give one",
                param="max_completion_tokens",
            )
        asked = wire.max_completion_tokens if wire.max_tokens is None else wire.max_tokens
        valid = self._finish(kind, wire, prompt_ids, asked, limits, caller, traceparent)
        return await self._held(replace(valid, reply=reply), grammar, wire)

    async def conversation(
        self, wire: ChatRequest, size: int
    ) -> tuple[Offer, str, tuple[int, ...]]:
        """What its answer may be; and it as the model reads it, as text and as ids. ``size``: see
        ``chat``.

        Raises a RequestError that names the field.
        """
        if not wire.messages:
            raise InvalidRequest("'messages' is empty", param="messages")

        def render() -> tuple[Offer, str]:
            offer = self._output.offer(wire)
            messages = as_dicts(wire.messages)
            return offer, self._tokenizer.render_chat(messages, offer.tools, offer.arguments)

        offer, prompt = await self._tokenizer.aside(size, render)
        return offer, prompt, await self._tokenizer.encode_rendered(prompt)

    async def completion(
        self, wire: CompletionRequest, limits: Limits, caller: Caller, traceparent: str
    ) -> list[ValidRequest]:
        """A request for each prompt; their choices are numbered through.

        Raises a RequestError that names the field, the value and the limit.
        """
        self.require_model(wire.model)
        if wire.best_of is not None and wire.n is not None and wire.n > wire.best_of:
            raise InvalidRequest(
                f"'best_of' is {wire.best_of}, below 'n', {reprlib.repr(wire.n)}", param="best_of"
            )
        prompts = fields.prompts(wire)
        ids = []
        for place, prompt in enumerate(prompts):
            if place:
                await asyncio.sleep(0)  # others may run between two of many
            ids.append(await self._ids(prompt))
        asked = wire.max_tokens
        valid = self._finish("completion", wire, ids[0], asked, limits, caller, traceparent)
        first = await self._held(valid, self._output.grammar(wire), wire)
        requests = [first]
        for place, prompt_ids in enumerate(ids[1:], start=1):
            if not prompt_ids:
                raise InvalidRequest(f"prompt {place} is empty", param="prompt")
            most = max(1, limits.fill(len(prompt_ids), asked))
            requests.append(
                replace(
                    first,
                    prompt_ids=prompt_ids,
                    sampling=replace(first.sampling, max_tokens=most),
                    first_choice=place * first.n,
                )
            )
        if not wire.echo or wire.baton_resume is not None:
            return requests
        echoes = [p if isinstance(p, str) else await self._tokenizer.decode(p) for p in prompts]
        for place, echo in enumerate(echoes):
            requests[place] = self._echoing(requests[place], echo)
            await asyncio.sleep(0)
        return requests

    def _echoing(self, valid: ValidRequest, echo: str) -> ValidRequest:
        grammar = ""
        if valid.sampling.logprobs is not None and len(valid.prompt_ids) > 1:
            grammar = self._output.exactly(valid.prompt_ids[1:])
        return replace(valid, echo=echo, echo_grammar=grammar)

    async def _held(
        self, valid: ValidRequest, grammar: str, wire: GenerationRequest
    ) -> ValidRequest:
        """With its grammar, once that is known to compile."""
        if valid.resume is not None and valid.reply.tools is not None and not valid.stream:
            raise InvalidRequest(
                "an answer with tools is gone on with as a stream: set 'stream'", param="stream"
            )
        if not grammar:
            return valid
        sampling = replace(valid.sampling, grammar=grammar)
        await self._output.check(sampling, valid.generated_ids, wire)
        return replace(valid, sampling=sampling)

    async def _ids(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await self._tokenizer.encode(prompt)
        self.check_ids(prompt)
        return tuple(prompt)

    def _finish(
        self,
        kind: Kind,
        wire: GenerationRequest,
        prompt_ids: tuple[int, ...],
        max_tokens: int | None,
        limits: Limits,
        caller: Caller,
        traceparent: str,
    ) -> ValidRequest:
        if not prompt_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        least = 0 if fields.only_echoes(wire) else 1
        if max_tokens is not None and not least <= max_tokens <= MAX_TOKENS:
            raise InvalidRequest(
                f"max_tokens is {reprlib.repr(max_tokens)}, but must be at least {least} and at "
                f"most {MAX_TOKENS}",
                param="max_tokens",
            )
        include_usage, continuous_usage = fields.usage(wire)
        sampling = self._sampling(wire, max(1, limits.fill(len(prompt_ids), max_tokens)))
        return ValidRequest(
            request_id=_ID_PREFIX[kind] + secrets.token_hex(12),
            created=int(time.time()),
            kind=kind,
            model=wire.model,
            prompt_ids=prompt_ids,
            sampling=sampling,
            stop=fields.stops(wire.stop),
            deadlines=self._deadlines.tightened(_asked(wire.deadlines)),
            caller=caller,
            n=fields.choices(wire),
            generates=max_tokens != 0,
            resume=self._resume(wire, prompt_ids, sampling),
            stream=bool(wire.stream),
            include_usage=include_usage,
            continuous_usage=continuous_usage,
            return_token_ids=wire.return_token_ids,
            priority=-caller.quota.priority(fields.priority(wire.priority)),
            session=fields.session(wire),
            traceparent=traceparent,
        )

    def _sampling(self, wire: GenerationRequest, max_tokens: int) -> SamplingSpec:
        given = {
            name: value
            for name in (
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "presence_penalty",
                "frequency_penalty",
                "repetition_penalty",
                "min_tokens",
            )
            if (value := getattr(wire, name)) is not None
        }
        return SamplingSpec(
            **given,
            seed=_seed(wire),
            logit_bias=self._logit_bias(wire.logit_bias or {}),
            max_tokens=max_tokens,
            ignore_eos=wire.ignore_eos,
            eos_ids=self._tokenizer.eos_ids,
            logprobs=fields.logprobs(wire),
        )

    def _resume(
        self, wire: GenerationRequest, prompt_ids: tuple[int, ...], sampling: SamplingSpec
    ) -> Resume | None:
        if wire.baton_resume is None:
            return None
        return resume.check(
            wire.baton_resume,
            sampling,
            prompt_digest=_digest(prompt_ids),
            choices=wire.n,
            most_choices=MAX_CHOICES,
            vocab_size=self._tokenizer.vocab_size,
        )

    def _logit_bias(self, wire: dict[str, float]) -> dict[int, float]:
        if len(wire) > MAX_LOGIT_BIASES:
            raise InvalidRequest(
                f"'logit_bias' names {len(wire)} tokens, but {MAX_LOGIT_BIASES} are allowed",
                param="logit_bias",
            )
        last = self._tokenizer.vocab_size - 1
        for key in wire:
            # One spelling per id: "01" would silently win over "1", or lose.
            short = key.isascii() and key.isdigit() and len(key) <= len(str(last))
            if not (short and str(int(key)) == key and int(key) <= last):
                raise InvalidRequest(
                    f"logit_bias names token {reprlib.repr(key)}, but ids are 0 to {last}",
                    param="logit_bias",
                )
        return {int(key): bias for key, bias in wire.items()}

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises InvalidRequest for what is no token id."""
        size = self._tokenizer.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise InvalidRequest(
                    f"prompt has token id {reprlib.repr(token_id)}, but ids are 0 to {size - 1}",
                    param="prompt",
                )

    def require_model(self, name: str) -> None:
        if name != self._served_model:
            raise ModelNotFound(
                f"model {reprlib.repr(name)} is not served here; {self._served_model!r} is",
                param="model",
            )


def _seed(wire: GenerationRequest) -> int:
    """The one given, here or by an answer that is to be finished; else one drawn now."""
    if wire.baton_resume is not None:
        return resume.check_seed(wire.baton_resume, wire.seed)
    return secrets.randbits(_DRAWN_SEED_BITS) if wire.seed is None else wire.seed


def _asked(wire: PhaseDeadlines | None) -> dict[str, float]:
    return {} if wire is None else wire.model_dump(exclude_none=True)
