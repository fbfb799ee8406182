"""``python -m model.kernels``: compile the C for every instruction set, to be shipped with.

For an image without a compiler: made once where there is one, it has what each CPU needs that the
image may come to run on. A worker takes its own from ``default_cache`` (``XDG_CACHE_HOME``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from model.kernels.build import INSTRUCTION_SETS, KernelUnavailable, build, default_cache


def main() -> int:
    """Prints each library; exit status 1 when one could not be made."""
    try:
        cache = default_cache()
        for source in sorted(Path(__file__).parent.glob("*.c")):
            for target in INSTRUCTION_SETS:
                print(build(source, target, cache, openmp=True))
    except KernelUnavailable as error:
        print(f"model.kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
