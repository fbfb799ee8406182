"""POST /tokenize and /detokenize: text to ids and back, in vLLM's shapes. No worker is asked."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from baton.errors import InvalidRequest, UnsupportedParameter
from gateway.answers import Detokenized, Tokenized
from gateway.requests import Validator
from gateway.schemas import DetokenizeRequest, TokenizeRequest, parse
from gateway.tokenizer import ModelTokenizer


class Tokens:
    """The tokenizer by itself."""

    def __init__(self, validator: Validator, tokenizer: ModelTokenizer) -> None:
        self._validator = validator
        self._tokenizer = tokenizer

    async def tokenize(self, http: Request) -> Response:
        """Raises a RequestError that names the field."""
        wire = parse(TokenizeRequest, await http.body())
        self._require_model(wire.model)
        ids = await self._ids(wire)
        body: Tokenized = {
            "count": len(ids),
            "max_model_len": self._tokenizer.context_length,
            "tokens": list(ids),
            "token_strs": None,
        }
        if wire.return_token_strs:
            body["token_strs"] = [self._tokenizer.vocabulary.written(i) for i in ids]
        return JSONResponse(body)

    async def detokenize(self, http: Request) -> Response:
        """Raises a RequestError that names the field."""
        wire = parse(DetokenizeRequest, await http.body())
        self._require_model(wire.model)
        self._validator.check_ids(wire.tokens.root)
        body: Detokenized = {"prompt": await self._tokenizer.decode(wire.tokens.root)}
        return JSONResponse(body)

    async def _ids(self, wire: TokenizeRequest) -> tuple[int, ...]:
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
        _, _, ids = await self._validator.conversation(wire.as_chat())
        return ids

    def _require_model(self, name: str | None) -> None:
        if name is not None:
            self._validator.require_model(name)
