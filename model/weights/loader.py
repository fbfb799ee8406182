"""A Hugging Face directory to ModelWeights: checked by the headers first, then read matrix by
matrix, each put into its final form before the next is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from baton.settings import Quantize
from model.nets.config import ModelConfig
from model.nets.linear import Linear, Plain
from model.nets.transformer import LayerWeights, ModelWeights
from model.weights.data import DTYPES, DataFiles
from model.weights.errors import CheckpointError
from model.weights.files import Checkpoint, read_checkpoint
from model.weights.linears import LinearMaker, forms

#: Called with the part loaded so far, 0 to 1.
Progress = Callable[[float], None]

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def load_weights(
    directory: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Quantize | None = None,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> ModelWeights:
    """Load all weights as ``dtype`` on ``device``, linears in the fastest form (LinearMaker).

    Raises CheckpointError, before reading any data when the headers already show what is wrong;
    ValueError for a ``quantize`` that ``device`` has not, and as LinearMaker does.
    """
    checkpoint = read_checkpoint(directory)
    _check(checkpoint, expected_shapes(config), config)
    linear = LinearMaker(forms(quantize, device), deterministic=deterministic)
    with closing(DataFiles(checkpoint.files)) as files:
        return _Reader(checkpoint, files, linear, dtype, device, progress).model(config)


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
        if info.dtype not in DTYPES:
            raise CheckpointError(
                f"{info.file}: tensor '{name}' should be one of {', '.join(DTYPES)}, "
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
    """Reads tensor by tensor, fusing what the net wants in one matrix."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        files: DataFiles,
        linear: LinearMaker,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._tensors = checkpoint.tensors
        self._files = files
        self._make = linear
        self._dtype = dtype
        self._device = device
        self._progress = progress
        #: Matrices of layers are read into this one, so that memory freed here is not in pieces.
        self._stage = torch.empty(0, dtype=dtype, device=device)
        self._total = sum(info.nbytes for info in checkpoint.tensors.values())
        self._done = 0

    def model(self, config: ModelConfig) -> ModelWeights:
        # The largest matrix first: for a moment it is there twice, when little else is.
        head = None if config.tied else self._make(self._read(_HEAD), None, keep=True)
        matrix = self._read(_EMBEDDING)
        if head is None:
            head = self._make(matrix, None, keep=True)
        embedding = (head.rows if config.tied else None) or Plain(matrix, None).rows
        del matrix  # where the head has its rows, it is not held twice
        layers = tuple(
            self._layer(f"model.layers.{layer}", config) for layer in range(config.layers)
        )
        norm = self._read("model.norm.weight")
        if self._progress is not None:
            self._progress(1.0)
        return ModelWeights(embedding, layers, norm, head)

    def _layer(self, prefix: str, c: ModelConfig) -> LayerWeights:
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qk_norm = None
        if c.qk_norm:
            q_norm = self._read(f"{attention}.q_norm.weight").expand(c.heads, -1)
            k_norm = self._read(f"{attention}.k_norm.weight").expand(c.kv_heads, -1)
            qk_norm = torch.cat((q_norm, k_norm))
        qkv = [f"{attention}.{part}_proj" for part in ("q", "k", "v")]
        gate_up = [f"{mlp}.{part}_proj" for part in ("gate", "up")]
        return LayerWeights(
            attention_norm=self._read(f"{prefix}.input_layernorm.weight"),
            qkv=self._linear(qkv, c.qkv_bias),
            qk_norm=qk_norm,
            out=self._linear([f"{attention}.o_proj"], c.out_bias),
            mlp_norm=self._read(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self._linear(gate_up, c.mlp_bias),
            down=self._linear([f"{mlp}.down_proj"], c.mlp_bias),
        )

    def _linear(self, names: list[str], has_bias: bool) -> Linear:
        """One linear of the named ones, joined along their outputs."""
        weights = [f"{name}.weight" for name in names]
        outputs, inputs = self._shape(weights)
        if self._stage.numel() < outputs * inputs:
            self._stage = self._stage.new_empty(outputs * inputs)
        weight = self._stage[: outputs * inputs].view(outputs, inputs)
        self._read_into(weight, weights)
        bias = self._read(*(f"{name}.bias" for name in names)) if has_bias else None
        return self._make(weight, bias, keep=False)

    def _read(self, *names: str) -> Tensor:
        """The named tensors, joined along their outputs, in memory of their own.

        That is aligned as the allocator aligns: BLAS may round differently elsewhere.
        """
        joined = torch.empty(self._shape(names), dtype=self._dtype, device=self._device)
        self._read_into(joined, names)
        return joined

    def _shape(self, names: Sequence[str]) -> tuple[int, ...]:
        outputs = sum(self._tensors[name].shape[0] for name in names)
        return (outputs, *self._tensors[names[0]].shape[1:])

    def _read_into(self, joined: Tensor, names: Sequence[str]) -> None:
        first = 0
        for name in names:
            info = self._tensors[name]
            tensor = joined[first : first + info.shape[0]]
            for rows, values in self._files.read(info):
                part = tensor[rows]
                part.copy_(values)
                self._require_finite(name, part)
            first += info.shape[0]
            self._done += info.nbytes
            if self._progress is not None:
                self._progress(self._done / self._total)

    def _require_finite(self, name: str, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise CheckpointError(
                f"{self._tensors[name].file}: tensor '{name}' ({self._tensors[name].dtype}) has "
                f"values that are not finite in {str(self._dtype).removeprefix('torch.')}"
            )
