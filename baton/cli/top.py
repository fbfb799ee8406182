"""``baton top``: what a fleet is doing, on a terminal."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

import httpx

from baton.cli import tls
from baton.client import AsyncClient
from baton.settings import FrontSettings, RoleSettings, WorkerSettings
from baton.tls.files import BadCertificate
from baton.tls.links import Links

_KEY = "BATON_API_KEY"
#: Seconds between two pictures.
_REFRESH, _BRISKEST = 1.0, 0.1
#: Less than a program has: a person can look what is wrong, and try again.
_PATIENCE = 5.0
_TUBES = ("green", "amber")


def main(argv: Sequence[str]) -> int:
    """Until it is left. Exit status 1 where it cannot be shown."""
    options = _parser().parse_args(argv)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _refuse("this is no terminal; `baton workers` prints a table")
    try:
        import textual  # noqa: F401  # before anything else needs it
    except ImportError:
        return _refuse("it needs the extra tui: pip install '.[tui]' in a clone of Baton")
    try:
        links = tls.links(options)
    except (BadCertificate, OSError) as error:
        return _refuse(str(error))
    asyncio.run(_show(options, links))
    return 0


def _refuse(why: str) -> int:
    print(f"baton top: {why}", file=sys.stderr)
    return 1


async def _show(options: argparse.Namespace, links: Links) -> None:
    from baton.top.app import Looks, Top
    from baton.top.feed import LiveFeed
    from baton.top.orders import FleetOrders

    key = options.api_key or os.environ.get(_KEY)
    # No proxy of the environment stands before the fleet's own network.
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        AsyncClient(options.chat_url or options.url, api_key=key, patience=_PATIENCE) as client,
    ):
        orders = FleetOrders(
            links,
            client,
            drain_grace=WorkerSettings.model_fields["drain_grace"].default,
            role_grace=RoleSettings.model_fields["role_grace"].default,
        )
        looks = Looks(
            refresh=options.refresh,
            tube=options.retro,
            motion=options.motion and "NO_COLOR" not in os.environ,
        )
        await Top([LiveFeed(url, http) for url in options.url], orders, looks).run_async()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="baton top",
        description="Watch a fleet: workers, queues, KV, latency, streams and events, as they "
        "are. From here a worker can be drained or given another role, and the model be asked.",
    )
    admin = f"http://127.0.0.1:{FrontSettings.model_fields['admin_port'].default}"
    parser.add_argument(
        "--url",
        metavar="URL,...",
        type=_urls,
        default=[admin],
        help=f"the gateways' admin ports (default: {admin})",
    )
    parser.add_argument(
        "--chat-url",
        metavar="URL,...",
        type=_urls,
        help="where prompts go, if not there",
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"for prompts (default: ${_KEY})")
    parser.add_argument(
        "--refresh",
        metavar="SECONDS",
        type=_refresh,
        default=_REFRESH,
        help="between two pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--retro",
        nargs="?",
        choices=_TUBES,
        const=_TUBES[0],
        help=f"on an old tube, {_TUBES[0]} if not said",
    )
    parser.add_argument(
        "--no-motion",
        dest="motion",
        action="store_false",
        help="no beam and no noise on it (likewise where NO_COLOR is set)",
    )
    tls.add_options(parser)
    return parser


def _urls(text: str) -> list[str]:
    return [_url(part.strip().rstrip("/")) for part in text.split(",")]


def _url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL like http://127.0.0.1:8001")
    return text


def _refresh(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not value >= _BRISKEST:
        raise argparse.ArgumentTypeError(f"{text} seconds are too few; at least {_BRISKEST}")
    return value
