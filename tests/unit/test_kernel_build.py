"""A library is built once, by whoever comes first, and what stands in the way is said."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.cuda import choice
from model.kernels import __main__ as kernels
from model.kernels.build import (
    INSTRUCTION_SETS,
    PORTABLE,
    KernelUnavailable,
    build,
    default_cache,
    supported,
)
from model.kernels.library import PagedAttentionLibrary, load_library
from model.nets.choice import choose_attention
from tests.reference import make_checkpoint
from tests.runners import Driver

GOOD = "int answer(void) { return 42; }"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text(GOOD)
    return path


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for cc that notes its calls and makes a file as told."""
    script = tmp_path / "cc"
    script.write_text(
        '#!/bin/sh\necho "$@" >> "$0.calls"\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo made > "$2"; shift; done\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return script


def calls(compiler: Path) -> list[str]:
    notes = Path(f"{compiler}.calls")
    return notes.read_text().splitlines() if notes.exists() else []


def test_built_once_and_again_when_the_source_changes(
    source: Path, compiler: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "a" / "cache"
    first = build(source, PORTABLE, cache, openmp=False)
    assert len(calls(compiler)) == 2, "compiled, linked"
    assert build(source, PORTABLE, cache, openmp=False) == first
    assert len(calls(compiler)) == 2
    source.write_text(GOOD + "\n")
    second = build(source, PORTABLE, cache, openmp=False)
    source.with_name("part.h").touch()
    third = build(source, PORTABLE, cache, openmp=False)
    assert len({first, second, third, build(source, PORTABLE, cache, openmp=True)}) == 4
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {path.suffix for path in cache.iterdir()} == {".so"}, "no scratch is left"


def test_what_is_there_needs_no_compiler(
    source: Path, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(source, PORTABLE, tmp_path / "cache", openmp=False)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert build(source, PORTABLE, tmp_path / "cache", openmp=False) == built
    with pytest.raises(KernelUnavailable, match="no C compiler"):
        build(source, PORTABLE, tmp_path / "other", openmp=False)


def test_several_at_once_build_one_whole_file(source: Path, compiler: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(build, source, PORTABLE, tmp_path / "cache", openmp=False) for _ in range(8)
        ]
    (path,) = {job.result() for job in jobs}
    assert path.read_text() == "made\n"
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nonexistent/cc", "/nonexistent/cc cannot be run"),
        ("sh -c 'echo so it is >&2; exit 3'", "sh failed with 3: so it is"),
    ],
)
def test_a_compiler_that_fails_is_quoted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(KernelUnavailable, match=message):
        build(source, PORTABLE, tmp_path / "cache", openmp=False)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_others_may_write_is_not_trusted(
    source: Path, compiler: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(KernelUnavailable, match="not ours alone to write"):
        build(source, PORTABLE, cache, openmp=False)
    assert not calls(compiler)


def test_a_cache_that_cannot_be_made_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelUnavailable, match=f"cannot keep a library in {tmp_path}/file/x"):
        build(source, PORTABLE, tmp_path / "file" / "x", openmp=False)


def test_a_compiler_without_openmp_makes_a_library_of_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    """``attention`` skips this where there is no compiler at all."""
    if attention != "kernel":
        return
    real = os.environ.get("CC", "cc")
    script = tmp_path / "cc"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    library = load_library(PagedAttentionLibrary, supported()[0], tmp_path / "cache")
    assert library.instructions.endswith(", one thread")


def test_without_a_compiler_torch_computes_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if supported()[0] is PORTABLE:
        pytest.skip("the kernel is not chosen here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CC", raising=False)
    assert default_cache() == tmp_path / "cache" / "baton"
    checkpoint = make_checkpoint("llama2", tmp_path / "model")
    for deterministic in (False, True):
        runner = Driver.load(checkpoint, deterministic=deterministic).runner
        assert runner.chosen.reason == "no C compiler"
        assert "attention torch;" in runner.numerics_id
    with pytest.raises(KernelUnavailable, match="--attention kernel: no C compiler"):
        Driver.load(checkpoint, attention="kernel")


def test_on_a_gpu_it_is_another_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "installed", lambda module: False)
    config = Driver.load(make_checkpoint("llama2", tmp_path)).runner.config
    options = {"block_size": 16, "dtype": torch.bfloat16, "deterministic": False}
    options |= {"max_positions": 64, "device": torch.device("cuda:0")}
    with pytest.raises(KernelUnavailable, match="--attention kernel: triton is not installed"):
        choose_attention("kernel", config, **options)
    chosen = choose_attention("auto", config, **options)
    assert (chosen.name, chosen.reason) == ("torch", "triton is not installed")
    options["device"] = torch.device("cpu")
    with pytest.raises(KernelUnavailable, match="--attention flashinfer is for CUDA, not for cpu"):
        choose_attention("flashinfer", config, **options)


def test_every_instruction_set_can_be_shipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: Path
) -> None:
    """Also those of other CPUs; a worker then finds its own without a compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.main() == 0
    made = {path.name.rpartition("-")[0] for path in default_cache().iterdir()}
    sources = [path.stem for path in Path(kernels.__file__).parent.glob("*.c")]
    assert made == {f"{source}-{target.name}" for source in sources for target in INSTRUCTION_SETS}
    monkeypatch.setenv("CC", "/nowhere")
    source = Path(kernels.__file__).with_name("linear.c")
    assert build(source, supported()[0], default_cache(), openmp=True).exists()
