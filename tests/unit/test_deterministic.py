"""Promise B: under ``deterministic`` a token's logits are the same bits under any batch, chunk
border or prefix hit. (Sampling is a pure function of them, tested on its own.)"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.nets.linear import PLAIN, Form, Plain
from model.nets.rows import PlainRows, TiledRows, require_row_independence
from model.weights.linears import LinearMaker
from tests.reference import VOCAB_SIZE, make_checkpoint
from tests.runners import Driver, Logits

BLOCK = 16
MODELS = {
    "odd": ("qwen3", {"num_hidden_layers": 2}),
    "window": ("mistral", {"num_hidden_layers": 2, "sliding_window": 90}),
    "larger": (
        "llama3",
        {
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
        },
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, over = MODELS[request.param]
    return make_checkpoint(family, tmp_path_factory.mktemp(request.param), **over)


@pytest.fixture(autouse=True)
def one_thread_after() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def tokens(seed: int, length: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, VOCAB_SIZE, length)]


def alone(driver: Driver, prompt: list[int], answer: list[int]) -> list[Logits]:
    """The yardstick: one chunk, then one decode step per token, nothing else in the batch."""
    first = driver.prefill(0, prompt)
    return [first] + [driver.decode({0: token})[0] for token in answer]


def require_same(found: list[Logits], expected: list[Logits]) -> None:
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.tobytes() == b.tobytes(), f"logits differ at token {index}"


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8")],
)
def test_any_composition_gives_the_same_bits(
    checkpoint: Path, attention: str, dtype: torch.dtype, quantize: str | None
) -> None:
    def load() -> Driver:
        options = {
            "deterministic": True,
            "dtype": dtype,
            "attention": attention,
            "quantize": quantize,
        }
        return Driver.load(checkpoint, num_blocks=192, block_size=BLOCK, **options)

    prompt, answer = tokens(1, 17 * BLOCK + 1), tokens(2, 5)
    expected = alone(load(), prompt, answer)

    for chunk in (16, 100, 512):
        driver = load()
        found = [driver.prefill(7, prompt, chunk=chunk)]
        found += [driver.decode({7: token})[7] for token in answer]
        require_same(found, expected)

    driver = load()
    require_same(in_a_batch_of_sixteen(driver, prompt, answer), expected)
    for hit in (BLOCK, 16 * BLOCK, 17 * BLOCK):
        seq = 100 + hit
        driver.adopt(seq, 0, hit)
        found = [driver.prefill(seq, prompt[hit:])]
        require_same(found, expected[:1])


def in_a_batch_of_sixteen(driver: Driver, prompt: list[int], answer: list[int]) -> list[Logits]:
    """Sequence 0 in chunks of 37 and then decoding, always in the middle of fifteen others that
    prefill and decode chunks of every size beside it."""
    others = {seq: tokens(seq, 200) for seq in range(1, 16)}

    def beside(step: int, seqs: range) -> list:
        pieces = []
        for seq in seqs:
            size = 1 if seq % 3 else 1 + (seq * 7 + step * 5) % 18
            pieces.append(driver.piece(seq, others[seq][:size], sample=bool(seq % 2)))
            del others[seq][:size]
        return pieces

    found: list[Logits] = []
    parts = [prompt[i : i + 37] for i in range(0, len(prompt), 37)] + [[t] for t in answer]
    for step, part in enumerate(parts):
        sample = step >= len(parts) - len(answer) - 1
        mine = driver.piece(0, part, sample=sample)
        logits = driver.step(*beside(step, range(1, 9)), mine, *beside(step, range(9, 16)))
        found += [logits[0]] if sample else []
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_threads_do_not_change_that(
    checkpoint: Path, attention: str, dtype: torch.dtype
) -> None:
    """Shorter than the above: threads without cores of their own are very slow."""
    options = {"deterministic": True, "dtype": dtype, "threads": 2, "attention": attention}
    prompt, answer = tokens(1, 4 * BLOCK + 1), tokens(2, 2)
    expected = alone(Driver.load(checkpoint, **options), prompt, answer)
    driver = Driver.load(checkpoint, **options)
    found = [driver.prefill(0, prompt, chunk=23)]
    for token in answer:
        beside = driver.piece(1, tokens(token, 9), sample=False)
        found += [driver.step(beside, driver.piece(0, [token], sample=True))[0]]
    require_same(found, expected)


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, 64, 65, 255, 256, 257])
def test_prompt_lengths_around_blocks_and_splits(
    checkpoint: Path, attention: str, length: int
) -> None:
    prompt, answer = tokens(3, length), tokens(4, 3)
    options = {"deterministic": True, "dtype": torch.float32, "attention": attention}
    expected = alone(Driver.load(checkpoint, **options), prompt, answer)
    driver = Driver.load(checkpoint, **options)
    found = [driver.prefill(0, prompt, chunk=13)]
    driver.prefill(1, prompt[:9])
    found += [driver.decode({1: token, 0: token})[0] for token in answer]
    require_same(found, expected)


def test_replay_of_an_answer_as_a_prompt(checkpoint: Path) -> None:
    """What an attempt k+1 does: generated tokens come back as part of the prefill."""
    prompt, answer = tokens(5, 50), tokens(6, 30)
    options = {"deterministic": True, "dtype": torch.bfloat16}
    expected = alone(Driver.load(checkpoint, **options), prompt, answer)
    replayed = Driver.load(checkpoint, **options).prefill(0, prompt + answer)
    require_same([replayed], expected[-1:])


def test_deterministic_is_close_to_plain(checkpoint: Path, attention: str) -> None:
    prompt = tokens(8, 300)
    plain = Driver.load(checkpoint, attention="torch").prefill(0, prompt)
    options = {"deterministic": True, "attention": attention}
    deterministic = Driver.load(checkpoint, **options).prefill(0, prompt)
    # A last bit of float32 now and then rounds a K or V to another FP16.
    assert np.abs(plain - deterministic).max() < 1e-3 * np.abs(plain).max()


def test_leftovers_of_others_in_a_block_are_never_seen(checkpoint: Path, attention: str) -> None:
    """A freed block may hold anything, also what is not finite."""
    for deterministic in (False, True):
        options = {"deterministic": deterministic, "attention": attention}
        clean, dirty = (Driver.load(checkpoint, **options) for _ in range(2))
        fill_with_nan(dirty)
        prompt = tokens(9, 40)
        require_same([dirty.prefill(0, prompt)], [clean.prefill(0, prompt)])


def fill_with_nan(driver: Driver) -> None:
    kv, blocks = driver.runner.compatibility, range(driver.runner.num_blocks)
    data = memoryview(b"\xff" * (kv.block_bytes * len(blocks)))
    for layer in range(kv.layers):
        asyncio.run(driver.runner.store.write(layer, blocks, data))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silu_on_tiles_does_not_depend_on_the_row(dtype: torch.dtype, threads: int) -> None:
    """In one call over the tile it does, at this size, with two threads or more."""
    torch.set_num_threads(threads)
    tile = torch.randn(16, 4099, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = TiledRows()
    assert torch.equal(rows.silu(tile), rows.silu(tile.roll(1, 0)).roll(-1, 0))


def test_tiles_give_back_exactly_the_rows_put_in() -> None:
    x, y = torch.randn(37, 5), torch.randn(37, 2, 3)

    def stage(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert x.shape[0] in (16, 37) and y.shape[0] == x.shape[0]
        return x + 1, y * 2

    for plain, tiled in zip(
        PlainRows().map(stage, x, y), TiledRows().map(stage, x, y), strict=True
    ):
        assert torch.equal(plain, tiled)


class ByPlace(Plain):
    """A product that depends on the row's place: what a foreign BLAS might do."""

    kind = "by place"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) + torch.arange(x.shape[0])[:, None]


def test_a_matrix_that_breaks_the_promise_is_named() -> None:
    matrix, cpu = torch.randn(24, 10), torch.device("cpu")
    require_row_independence([Plain(matrix, None)], torch.float32, cpu)
    with pytest.raises(ValueError, match=r"\[24, 10\].*by place.*not the same at every row"):
        require_row_independence([ByPlace(matrix, None)], torch.float32, cpu)


def test_a_form_that_breaks_the_promise_is_passed_over() -> None:
    by_place = Form("by place", lambda weight: None, ByPlace)
    matrix = torch.randn(24, 10)
    assert (
        LinearMaker([by_place, PLAIN], deterministic=False)(matrix, None, keep=True).kind
        == "by place"
    )
    assert (
        LinearMaker([by_place, PLAIN], deterministic=True)(matrix, None, keep=True).kind == "plain"
    )
    with pytest.raises(ValueError, match=r"\[24, 10\] matrix .* not the same at every row"):
        LinearMaker([by_place], deterministic=True)(matrix, None, keep=True)
