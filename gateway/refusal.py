"""An error of the table as an HTTP answer."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from baton.errors import BatonError, CapacityError, InvalidApiKey


def refusal(error: BatonError) -> JSONResponse:
    """Before the first byte of an answer: status, OpenAI's error body, and when to come again."""
    headers = {}
    if isinstance(error, CapacityError):
        # Whole seconds, none too few; who comes at once finds what it left.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, InvalidApiKey):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.to_openai(), status_code=error.http_status, headers=headers)
