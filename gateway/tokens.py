"""POST /tokenize and /detokenize: text to ids and back, in vLLM's shapes. No worker is asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from baton.errors import InvalidRequest, UnsupportedParameter
from gateway.answers import Detokenized
from gateway.body_limit import body_of
from gateway.requests import Validator
from gateway.schemas import DetokenizeRequest, TokenizeRequest, parse
from gateway.tokenizer import ModelTokenizer

#: Ids told at once: a millisecond's worth of work.
_AT_ONCE = 4096


class Tokens:
    """The tokenizer by itself."""

    def __init__(self, validator: Validator, tokenizer: ModelTokenizer) -> None:
        self._validator = validator
        self._tokenizer = tokenizer

    async def tokenize(self, http: Request) -> Response:
        """Raises a RequestError that names the field."""
        wire = parse(TokenizeRequest, body := await body_of(http))
        self._require_model(wire.model)
        ids = await self._ids(wire, len(body))
        told = self._tell(ids, strings=bool(wire.return_token_strs))
        return StreamingResponse(told, media_type="application/json")

    async def _tell(self, ids: Sequence[int], *, strings: bool) -> AsyncIterator[str]:
        """A ``Tokenized``. There may be millions: others run between two parts of it."""
        most = self._tokenizer.context_length
        yield f'{{"count":{len(ids)},"max_model_len":{most},"tokens":['
        async for part in _parts(ids):
            yield part
        yield '],"token_strs":' + ("[" if strings else "null")
        if strings:
            written = self._tokenizer.vocabulary.written
            async for part in _parts(ids, lambda some: [written(i) for i in some]):
                yield part
            yield "]"
        yield "}"

    async def detokenize(self, http: Request) -> Response:
        """Raises a RequestError that names the field."""
        wire = parse(DetokenizeRequest, await body_of(http))
        self._require_model(wire.model)
        self._validator.check_ids(wire.tokens.root)
        body: Detokenized = {"prompt": await self._tokenizer.decode(wire.tokens.root)}
        return JSONResponse(body)

    async def _ids(self, wire: TokenizeRequest, size: int) -> tuple[int, ...]:
        if (wire.prompt is None) == (wire.messages is None):
            raise InvalidRequest("give either 'prompt' or 'messages'", param="prompt")
        if wire.messages is None:
            for name in ("tools", "chat_template_kwargs"):
                if getattr(wire, name) is not None:
                    raise InvalidRequest(f"'{name}' needs 'messages'", param=name)
            special = wire.add_special_tokens is not False
            return await self._tokenizer.encode(wire.prompt or "", special=special)
        if wire.add_special_tokens:
            raise UnsupportedParameter(
                "'add_special_tokens' is not supported with 'messages': the chat template has them",
                param="add_special_tokens",
            )
        _, _, ids = await self._validator.conversation(wire.as_chat(), size)
        return ids

    def _require_model(self, name: str | None) -> None:
        if name is not None:
            self._validator.require_model(name)


async def _parts(
    ids: Sequence[int], shown: Callable[[Sequence[int]], Sequence[object]] = list
) -> AsyncIterator[str]:
    """The inside of a JSON array of ``ids`` as ``shown``."""
    for start in range(0, len(ids), _AT_ONCE):
        part = json.dumps(shown(ids[start : start + _AT_ONCE]), ensure_ascii=False)[1:-1]
        yield part if start == 0 else "," + part
        await asyncio.sleep(0)
