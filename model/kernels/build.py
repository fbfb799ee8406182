"""Compile C for this machine's CPU when it is first needed, and keep what comes out.

The source is package data and the C compiler, where there is one, is called at start: no build
step at installation, no wheel per platform. A library is kept in ``default_cache`` under a name
made of its sources and options, so one that is there needs no compiler (an image may be built with
one and shipped without), and workers that start together may build it at once: each moves a whole
file into place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

_SECONDS = 120.0  # for a compiler that does not come back; it takes about one
#: The order of sums is written in the source, so nothing here may change it.
_OPTIONS = ("-O3", "-std=gnu11", "-fPIC", "-ffp-contract=fast")


class KernelUnavailable(ValueError):
    """Why there is no kernel to use here, for people."""


@dataclass(frozen=True, slots=True)
class InstructionSet:
    name: str
    flags: frozenset[str]  #: what a CPU must have, as Linux calls it
    options: tuple[str, ...]  #: for the compiler


def _set(name: str, *flags: str) -> InstructionSet:
    options = tuple(f"-m{flag.replace('avx512_', 'avx512')}" for flag in flags)
    return InstructionSet(name, frozenset(flags), options)


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma")
#: Runs anywhere, the slowest.
PORTABLE = _set("portable")
#: Best first.
INSTRUCTION_SETS = (
    # Of the CPUs with bfloat16, Cooper Lake alone lacks avx512vbmi.
    _set("avx512_bf16", *_AVX512, "avx512_bf16", "avx512vbmi"),
    _set("avx512", *_AVX512),
    _set("avx2", "avx2", "fma", "f16c"),
    PORTABLE,
)


def supported() -> list[InstructionSet]:
    """What this CPU can run, best first; the last one always is PORTABLE."""
    has = cpu_flags()
    return [one for one in INSTRUCTION_SETS if one.flags <= has]


def cpu_flags() -> set[str]:
    """What this CPU has, as Linux calls it; elsewhere nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def default_cache() -> Path:
    """Where libraries are kept: ``baton`` in XDG_CACHE_HOME, by default ~/.cache. Raises
    KernelUnavailable for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "baton"
    except RuntimeError as error:
        raise KernelUnavailable(f"nowhere to keep a library: {error}") from error


def build(source: Path, target: InstructionSet, cache: Path, *, openmp: bool) -> Path:
    """The shared library of ``source``, and headers beside it, for ``target``: from ``cache`` or
    compiled into it.

    With ``openmp`` it is compiled for it but not linked with it: it takes the runtime that the
    process has. Raises KernelUnavailable, saying why.
    """
    options = [*_OPTIONS, *target.options, *(["-fopenmp"] if openmp else [])]
    headers = sorted(source.parent.glob("*.h"))
    texts = [file.read_bytes() for file in (source, *headers)]
    made_of = b"\0".join([*texts, shlex.join(options).encode()])
    key = blake2b(made_of, digest_size=8).hexdigest()
    library = cache / f"{source.stem}-{target.name}-{key}.so"
    try:
        if not library.exists():
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_ours(cache)
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                made = _compile(source, options, Path(scratch))
                made.replace(library)
        _require_ours(library)
    except OSError as error:
        raise KernelUnavailable(f"cannot keep a library in {cache}: {error}") from error
    return library


def _require_ours(path: Path) -> None:
    """Raise KernelUnavailable for what another user could have put there: we run what it holds."""
    found = path.stat()
    if found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
        raise KernelUnavailable(f"{path} is not ours alone to write")


def _compile(source: Path, options: Sequence[str], scratch: Path) -> Path:
    """Compile and link, apart: given -fopenmp, a linker would add a second OpenMP runtime."""
    compiler = _compiler()
    compiled, linked = scratch / "kernel.o", scratch / "kernel.so"
    _call([*compiler, *options, "-c", str(source), "-o", str(compiled)])
    _call([*compiler, "-shared", str(compiled), "-o", str(linked), "-lm"])
    linked.chmod(0o700)
    return linked


def _compiler() -> list[str]:
    """The command that compiles C: CC, as make knows it, or the usual names."""
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        raise KernelUnavailable("no C compiler")
    return [found]


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailable(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[0]
        raise KernelUnavailable(f"{command[0]} failed with {done.returncode}: {said}")
