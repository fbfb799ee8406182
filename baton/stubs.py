"""Generates ``baton/v1`` from ``proto/``; ``python -m baton.stubs --check`` fails when stale."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
PACKAGE = Path("baton/v1")


def generate(out: Path) -> None:
    """Write the stubs of every .proto under ``out``. Raises RuntimeError if protoc fails."""
    from grpc_tools import protoc

    well_known = str(files("grpc_tools") / "_proto")
    sources = sorted(str(p) for p in SOURCES.rglob("*.proto"))
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    code = protoc.main(
        [
            "protoc",
            f"-I{SOURCES}",
            f"-I{well_known}",
            f"--plugin=protoc-gen-mypy_grpc={plugin}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out={out}",
            *sources,
        ]
    )
    if code != 0:
        raise RuntimeError(f"protoc failed with exit code {code}")


def stale(root: Path) -> list[str]:
    """Names of generated files that differ from what the .proto files give."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {p.name: p.read_bytes() for p in (Path(scratch) / PACKAGE).iterdir()}
    kept = {
        p.name: p.read_bytes()
        for p in (root / PACKAGE).iterdir()
        if p.is_file() and p.name != "__init__.py"
    }
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m baton.stubs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    differing = stale(ROOT)
    for name in differing:
        sys.stderr.write(f"stale: {PACKAGE / name} (run: python -m baton.stubs)\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
