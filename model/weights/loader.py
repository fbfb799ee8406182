"""A Hugging Face directory to ModelWeights: checked by the headers first, then read tensor by
tensor into memory of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from model.nets.config import ModelConfig
from model.nets.transformer import LayerWeights, ModelWeights
from model.weights.errors import CheckpointError
from model.weights.files import Checkpoint, read_checkpoint

#: Called with the part loaded so far, 0 to 1.
Progress = Callable[[float], None]

_DTYPES = ("F32", "F16", "BF16")
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def load_weights(
    directory: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> ModelWeights:
    """Load all weights as ``dtype`` on ``device``. Raises CheckpointError, before reading any
    data when the headers already show what is wrong."""
    checkpoint = read_checkpoint(directory)
    _check(checkpoint, expected_shapes(config), config)
    with ExitStack() as stack:
        return _Reader(checkpoint, stack, dtype, device, progress).model(config)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model needs, with its shape, in Hugging Face's names."""
    shapes: dict[str, tuple[int, ...]] = {
        _EMBEDDING: (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tied:
        shapes[_HEAD] = (config.vocab_size, config.hidden_size)
    for layer in range(config.layers):
        shapes.update(_layer_shapes(f"model.layers.{layer}", config))
    return shapes


def _layer_shapes(prefix: str, c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    yield f"{prefix}.input_layernorm.weight", (c.hidden_size,)
    yield f"{prefix}.post_attention_layernorm.weight", (c.hidden_size,)
    if c.qk_norm:
        yield f"{prefix}.self_attn.q_norm.weight", (c.head_dim,)
        yield f"{prefix}.self_attn.k_norm.weight", (c.head_dim,)
    for name, outputs, inputs, bias in (
        ("self_attn.q_proj", queries, c.hidden_size, c.qkv_bias),
        ("self_attn.k_proj", keys, c.hidden_size, c.qkv_bias),
        ("self_attn.v_proj", keys, c.hidden_size, c.qkv_bias),
        ("self_attn.o_proj", c.hidden_size, queries, c.out_bias),
        ("mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias),
        ("mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias),
        ("mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias),
    ):
        yield f"{prefix}.{name}.weight", (outputs, inputs)
        if bias:
            yield f"{prefix}.{name}.bias", (outputs,)


def _check(
    checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]], config: ModelConfig
) -> None:
    """Compare names, shapes and dtypes; raise CheckpointError on the first difference."""
    where = checkpoint.files[0].parent
    for name, shape in expected.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{where}: tensor '{name}' of shape {list(shape)} is missing")
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: tensor '{name}' should have shape {list(shape)}, "
                f"found {list(info.shape)}"
            )
        if info.dtype not in _DTYPES:
            raise CheckpointError(
                f"{info.file}: tensor '{name}' should be one of {', '.join(_DTYPES)}, "
                f"found {info.dtype}"
            )
    for name in checkpoint.tensors.keys() - expected.keys():
        # Old exports carry derived frequencies, and tied ones a copy of the embedding.
        if not name.endswith("rotary_emb.inv_freq") and not (config.tied and name == _HEAD):
            raise CheckpointError(
                f"{checkpoint.tensors[name].file}: unexpected tensor '{name}', "
                f"which {config.architecture} does not have"
            )


class _Reader:
    """Reads mapped files tensor by tensor, fusing what the net wants in one matrix."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stack: ExitStack,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._tensors = checkpoint.tensors
        self._open: dict[Path, Any] = {
            file: stack.enter_context(safe_open(file, framework="pt")) for file in checkpoint.files
        }
        self._dtype = dtype
        self._device = device
        self._progress = progress
        self._total = sum(info.nbytes for info in checkpoint.tensors.values())
        self._done = 0

    def model(self, config: ModelConfig) -> ModelWeights:
        embedding = self._read(_EMBEDDING)
        layers = tuple(
            self._layer(f"model.layers.{layer}", config) for layer in range(config.layers)
        )
        norm = self._read("model.norm.weight")
        head = embedding if config.tied else self._read(_HEAD)
        if self._progress is not None:
            self._progress(1.0)
        return ModelWeights(embedding, layers, norm, head)

    def _layer(self, prefix: str, c: ModelConfig) -> LayerWeights:
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = [f"{attention}.{part}_proj" for part in ("q", "k", "v")]
        gate_up = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        return LayerWeights(
            attention_norm=self._read(f"{prefix}.input_layernorm.weight"),
            qkv=self._read(*(f"{name}.weight" for name in qkv)),
            qkv_bias=self._read(*(f"{name}.bias" for name in qkv)) if c.qkv_bias else None,
            q_norm=self._read(f"{attention}.q_norm.weight") if c.qk_norm else None,
            k_norm=self._read(f"{attention}.k_norm.weight") if c.qk_norm else None,
            out=self._read(f"{attention}.o_proj.weight"),
            out_bias=self._read(f"{attention}.o_proj.bias") if c.out_bias else None,
            mlp_norm=self._read(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self._read(*(f"{name}.weight" for name in gate_up)),
            gate_up_bias=self._read(*(f"{name}.bias" for name in gate_up)) if c.mlp_bias else None,
            down=self._read(f"{mlp}.down_proj.weight"),
            down_bias=self._read(f"{mlp}.down_proj.bias") if c.mlp_bias else None,
        )

    def _read(self, *names: str) -> Tensor:
        """The named tensors, joined along their outputs, copied out of the mapped file.

        A copy is aligned as the allocator aligns; a mapped tensor lies where the header's length
        happens to put it, and BLAS may round differently there.
        """
        outputs = sum(self._tensors[name].shape[0] for name in names)
        shape = (outputs, *self._tensors[names[0]].shape[1:])
        joined = torch.empty(shape, dtype=self._dtype, device=self._device)
        first = 0
        for name in names:
            info = self._tensors[name]
            part = joined[first : first + info.shape[0]]
            part.copy_(self._open[info.file].get_tensor(name))
            first += info.shape[0]
            self._require_finite(name, part)
            self._done += info.nbytes
            if self._progress is not None:
                self._progress(self._done / self._total)
        return joined

    def _require_finite(self, name: str, values: Tensor) -> None:
        if not bool(torch.isfinite(values.abs().amax())):
            raise CheckpointError(
                f"{self._tensors[name].file}: tensor '{name}' ({self._tensors[name].dtype}) has "
                f"values that are not finite in {str(self._dtype).removeprefix('torch.')}"
            )
