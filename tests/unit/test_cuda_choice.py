"""Which paged attention is taken, decided without a device."""

from __future__ import annotations

import pytest
import torch

from model.cuda import choice
from model.cuda.buffers import StepInputs
from model.cuda.choice import Way, choose_paged
from model.cuda.flashinfer_attention import flashinfer_refusal
from model.cuda.paged import AttentionShape, PagedAttention
from model.cuda.varlen_attention import varlen_refusal
from model.kernels.build import KernelUnavailable

SHAPE = AttentionShape(
    heads=4,
    kv_heads=2,
    head_dim=64,
    block_size=16,
    windows=(None,),
    max_positions=100,
    dtype=torch.bfloat16,
    device=torch.device("cpu"),
)


class Fake(PagedAttention):
    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, step: StepInputs) -> None:
        raise NotImplementedError

    def attend(
        self, layer: int, q: torch.Tensor, pool: torch.Tensor, step: StepInputs
    ) -> torch.Tensor:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where FlashInfer cannot be had, and varlen and Triton can."""
    monkeypatch.setattr(choice, "installed", lambda module: True)
    known = {
        "flashinfer": Way(lambda shape: "it is not installed", lambda shape: Fake("flashinfer")),
        "varlen": Way(lambda shape: None, lambda shape: Fake("varlen")),
        "kernel": Way(lambda shape: None, lambda shape: Fake("triton")),
    }
    monkeypatch.setattr(choice, "WAYS", known)


def test_the_first_that_can_be_had() -> None:
    paged, reason = choose_paged("auto", SHAPE, deterministic=False)
    assert paged is not None and paged.name == "varlen"
    assert reason == "it is not installed"


def test_one_that_is_asked_for_by_name_or_none() -> None:
    paged, reason = choose_paged("kernel", SHAPE, deterministic=False)
    assert paged is not None and paged.name == "triton" and reason is None
    with pytest.raises(KernelUnavailable, match="--attention flashinfer: it is not installed"):
        choose_paged("flashinfer", SHAPE, deterministic=False)
    assert choose_paged("torch", SHAPE, deterministic=False)[0] is None


def test_deterministic_takes_none() -> None:
    paged, reason = choose_paged("auto", SHAPE, deterministic=True)
    assert paged is None and reason is not None and "--deterministic" in reason
    with pytest.raises(KernelUnavailable, match="--attention varlen: --deterministic"):
        choose_paged("varlen", SHAPE, deterministic=True)


def test_without_triton_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "installed", lambda module: False)
    assert choose_paged("auto", SHAPE, deterministic=False) == (None, "triton is not installed")


def test_libraries_are_for_cuda() -> None:
    assert "for CUDA, not for cpu" in str(flashinfer_refusal(SHAPE))
    assert "for CUDA, not for cpu" in str(varlen_refusal(SHAPE))
