"""``baton bench NAME``: a benchmark, as ``python -m bench.NAME``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

#: What measures any endpoint; the others are of one's own machine, and `python -m` starts them.
_NAMES = {
    "serve": "load for an OpenAI endpoint, and what came of it",
    "report": "what a run of serve came to, from its raw file",
    "compare": "two of them side by side",
}


def main(argv: Sequence[str]) -> int:
    """Exit status 2 for a name that is none, 1 where the extra is not installed."""
    name = argv[0] if argv else ""
    if name not in _NAMES:
        named = "\n".join(f"  {known:<8} {summary}" for known, summary in _NAMES.items())
        text = f"usage: baton bench NAME [option ...]\n\nbenchmarks:\n{named}"
        asked = name in {"-h", "--help"}
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        entry: Callable[[Sequence[str]], int] = import_module(f"bench.{name}").main
    except ModuleNotFoundError as error:
        print(
            f"baton bench {name}: no module {error.name}; `pip install 'baton-serve[bench]'` "
            "installs what benchmarks need",
            file=sys.stderr,
        )
        return 1
    return entry(argv[1:])
