"""The routes of the page, open to everybody: there is nothing in its files to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

#: Where a visitor finds the live feed: here, on the other port, or nowhere.
Feed = Literal["here", "admin", "off"]

#: Nothing from elsewhere, no inline script or style, no frame around it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new gateway has a new page; asked again, it costs a 304
}


class Page:
    """Its files, and what they must know of the port that they came from."""

    def __init__(self, *, key: bool, feed: Feed) -> None:
        """``key``: whether the API asks for one."""
        self._files = _Files(directory=Path(__file__).parent / "static")
        self._about = {"key": key, "live": feed}

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self._index, include_in_schema=False),
            Route("/page/about", self._tell, include_in_schema=False),
            Mount("/page", self._files),
        ]

    async def _index(self, http: Request) -> Response:
        return await self._files.get_response("index.html", http.scope)

    async def _tell(self, _: Request) -> Response:
        return JSONResponse(self._about, headers=_HEADERS)


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def is_page(path: str) -> bool:
    """Whether a path is one of the page's."""
    return path == "/" or path.startswith("/page/")
