"""Models of a given shape with random weights: for speed the values of weights do not matter."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.nets.config import load_config
from model.weights.loader import expected_shapes

#: Where checkpoints are kept between runs; git ignores it.
CACHE = Path(__file__).parent / "out"

#: Small enough that no key or value comes near the end of FP16, whatever the depth.
_SPREAD = 0.02
_SEED = 135


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Of a Llama with tied embeddings."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    context: int  #: tokens

    @property
    def token_bytes(self) -> int:
        """FP16 KV of one token in all layers."""
        return self.layers * 2 * self.kv_heads * (self.hidden // self.heads) * 2


#: As HuggingFaceTB/SmolLM2-135M, but for the context: hand-offs of 32k tokens are measured, too.
SMOLLM2_135M = ModelShape(
    name="SmolLM2-135M-shaped",
    layers=30,
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    vocab=49_152,
    context=40_960,
)

#: For tests: every path, in seconds.
TINY = ModelShape(
    name="tiny",
    layers=2,
    hidden=64,
    intermediate=128,
    heads=4,
    kv_heads=2,
    vocab=512,
    context=40_960,
)

#: By what one calls them on a command line; the first is the one that is reported.
SHAPES = {"smollm2-135m": SMOLLM2_135M, "tiny": TINY}


def checkpoint(shape: ModelShape, cache: Path = CACHE) -> Path:
    """The directory of a bf16 checkpoint of this shape: config and weights, no tokenizer.

    The same shape gives the same bytes. It is written once and whole, or not at all.
    """
    directory = cache / f"{shape.name}-{_SEED}"
    if not directory.exists():
        unfinished = cache / f"{directory.name}.{os.getpid()}"
        unfinished.mkdir(parents=True)
        try:
            _write(shape, unfinished)
            unfinished.rename(directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def _write(shape: ModelShape, directory: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    random = torch.Generator().manual_seed(_SEED)
    tensors = {
        name: _random(size, random)
        for name, size in expected_shapes(load_config(directory)).items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _random(size: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Norms (vectors) are ones, matrices normal."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return (torch.randn(size, generator=random) * _SPREAD).to(torch.bfloat16)
