"""``baton generate`` and ``baton chat``: answers on the terminal, as they come."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from rich.console import Console
from rich.text import Text

from baton.client import Client, GenerateOptions, Stream
from baton.client.asked import Json
from baton.errors import BatonError, GatewayLost
from baton.settings import FrontSettings

_KEY = "BATON_API_KEY"
#: Less than a program has: a person can look what is wrong, and try again.
_PATIENCE = 5.0
#: Said where no gateway answers.
_HINT = "\n--url is that of the gateway's --port; `baton up` starts one."
#: Of a shell's process that was interrupted.
_INTERRUPTED = 130

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it; Ctrl-C stops an answer"


def generate(argv: Sequence[str]) -> int:
    """Print what follows a prompt. Exit status 1 when there is no answer, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="baton generate",
        description="Print how a text goes on, as it comes. Without a PROMPT, the text is that of "
        "standard input.",
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to go on with")
    _add_options(parser)
    options = parser.parse_args(argv)
    prompt = sys.stdin.read() if options.prompt is None else options.prompt

    def talk(client: Client) -> int:
        with client.generate(prompt, stream=True, **_sampling(options)) as stream:
            return 0 if Screen().follow(stream) else _INTERRUPTED

    return _talk(options, "baton generate", talk)


def chat(argv: Sequence[str]) -> int:
    """Talk until the end of input. Exit status 1 when the gateway cannot be talked to."""
    parser = argparse.ArgumentParser(
        prog="baton chat",
        description="Talk to a model. Each line of standard input is a message; the conversation "
        f"is remembered. {_HELP}.",
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    _add_options(parser)
    options = parser.parse_args(argv)
    opening = [] if options.system is None else [_message("system", options.system)]

    def talk(client: Client) -> int:
        screen = Screen()
        screen.note(f"{', '.join(client.models())} at {', '.join(options.url)}. {_HELP}")
        _converse(client, screen, opening, _sampling(options))
        return 0

    return _talk(options, "baton chat", talk)


def _converse(
    client: Client, screen: Screen, opening: list[Mapping[str, Json]], sampling: GenerateOptions
) -> None:
    messages = list(opening)
    for said in screen.lines():
        match said.strip():
            case "":
                continue
            case "/exit":
                return
            case "/reset":
                messages = list(opening)
                screen.note("forgotten")
                continue
        messages.append(_message("user", said))
        try:
            with client.chat(messages, stream=True, **sampling) as stream:
                screen.follow(stream)
        except BatonError as error:  # the conversation can go on
            messages.pop()
            screen.note(f"\n{error.code}: {error.message}", "red")
        else:
            messages.append(stream.answer.message)


def _message(role: str, content: str) -> Mapping[str, Json]:
    return {"role": role, "content": content}


class Screen:
    """A terminal, or a pipe: that gets the text of answers and nothing else."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def note(self, text: str, style: str = "dim") -> None:
        """For people alone, but for what went wrong."""
        if self._out.is_terminal or style != "dim":
            self._notes.print(Text(text, style))

    def lines(self) -> Iterator[str]:
        """What is typed or piped in, to the end."""
        if self._out.is_terminal and sys.stdin.isatty():
            import readline  # noqa: F401  # so that input() can be edited

        while True:
            try:
                yield input("> " if self._out.is_terminal else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                self._out.print()
                return

    def follow(self, stream: Stream) -> bool:
        """Show an answer as it comes; False if Ctrl-C ended it. Raises BatonError."""
        began, finished = time.monotonic(), True
        try:
            for chunk in stream:
                self._show(chunk.reasoning, "dim")
                self._show(chunk.text)
        except KeyboardInterrupt:
            finished = False
        self._out.print()
        took = time.monotonic() - began
        count = len(stream.tokens)
        why = stream.finish_reason if finished else "stopped"
        self.note(f"{count} tokens, {count / took:.1f}/s, {why}")
        return finished

    def _show(self, text: str, style: str = "") -> None:
        if not self._out.is_terminal:
            sys.stdout.write("" if style else text)
            sys.stdout.flush()
        elif text:
            # A model does not get to command the terminal.
            self._out.print(Text(text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}"), style), end="")


def _add_options(parser: argparse.ArgumentParser) -> None:
    port = FrontSettings.model_fields["port"].default
    parser.add_argument(
        "--url",
        metavar="URL,...",
        type=lambda text: text.split(","),
        default=[f"http://127.0.0.1:{port}"],
        help=f"gateways that stand in for one another (default: http://127.0.0.1:{port})",
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"(default: ${_KEY})")
    parser.add_argument("--model", metavar="NAME", help="the one that is served, if not given")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=_PATIENCE,
        help="time for tries to mend what fails, before it is said (default: %(default)s)",
    )
    group = parser.add_argument_group("sampling", "The gateway's defaults, if not given.")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="at most so many")
    group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--top-p", type=float, metavar="X")
    group.add_argument("--min-p", type=float, metavar="X")
    group.add_argument("--repetition-penalty", type=float, metavar="X")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed, the same answer")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before it; may be repeated"
    )
    group.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="for an answer (default: none)"
    )


#: Options that go to the client under their own names.
_SAMPLING = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
    *("stop", "deadline"),
)


def _sampling(options: argparse.Namespace) -> GenerateOptions:
    given = {name: getattr(options, name) for name in _SAMPLING}
    return cast(
        GenerateOptions, {name: value for name, value in given.items() if value is not None}
    )


def _talk(options: argparse.Namespace, prog: str, talk: Callable[[Client], int]) -> int:
    """The exit status; what goes wrong is one line and status 1."""
    try:
        with Client(
            options.url,
            api_key=options.api_key or os.environ.get(_KEY),
            model=options.model,
            patience=options.patience,
        ) as client:
            return talk(client)
    except BatonError as error:
        lost = isinstance(error, GatewayLost)
        print(f"{prog}: {error.code}: {error.message}{_HINT if lost else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
