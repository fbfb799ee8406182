"""One frozen ModelConfig from the config.json of every supported family.

Field names and defaults are those of Hugging Face transformers. A field that would change the
result and is not implemented is refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.weights.errors import CheckpointError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretch of the low rope frequencies; lengths are in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class RopeConfig:
    theta: float
    llama3: Llama3Scaling | None = None  #: None for plain rope


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that decides the shape and the arithmetic of a model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int  #: the context length, in tokens
    norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]  #: per layer: keys a query sees, itself included; None: all
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  #: RMS norm of every query and key head, before rope
    tied: bool = False  #: the output matrix is the embedding

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in one layer of the FP16 cache."""
        return 2 * self.kv_heads * self.head_dim * 2


class _Fields:
    """Typed access to a parsed config.json; every refusal names file, field and value."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self._raw = raw
        self._source = source

    def refuse(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {why}")

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        value = self._raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.refuse(f"field '{name}' is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.refuse(f"field '{name}' should be {kind.__name__}, found {value!r}")
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.get(name, int, default)
        if value <= 0:
            raise self.refuse(f"field '{name}' should be positive, found {value}")
        return value

    def optional(self, name: str, default: int | None = None) -> int | None:
        """A positive integer, or None where the field is null; ``default`` where it is absent."""
        return default if name not in self._raw else self._none_or_positive(name)

    def _none_or_positive(self, name: str) -> int | None:
        return None if self._raw[name] is None else self.positive(name)

    def section(self, name: str) -> _Fields | None:
        """A nested object, or None where it is absent, null or empty."""
        value = self._raw.get(name)
        if not value:
            return None
        if not isinstance(value, dict):
            raise self.refuse(f"field '{name}' should be an object, found {value!r}")
        return _Fields(value, f"{self._source}: {name}")

    def strings(self, name: str) -> list[str]:
        value = self._raw.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(f"field '{name}' should be a list of strings, found {value!r}")
        return value


def load_config(directory: Path) -> ModelConfig:
    """Read ``directory/config.json``. Raises CheckpointError."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; a model directory needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: should hold an object, found {type(raw).__name__}")
    return parse_config(raw, str(path))


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Build the config from parsed JSON; ``source`` names it in errors. Raises CheckpointError."""
    fields = _Fields(raw, source)
    names = fields.strings("architectures")
    if len(names) != 1 or names[0] not in _FAMILIES:
        raise fields.refuse(
            f"architecture {', '.join(names) or 'none'} is not supported; "
            f"supported are {', '.join(_FAMILIES)}"
        )
    _refuse_unimplemented(fields)
    config = _FAMILIES[names[0]](names[0], fields)
    if config.heads % config.kv_heads:
        raise fields.refuse(f"{config.heads} heads are no multiple of {config.kv_heads} KV heads")
    if config.head_dim % 2:
        raise fields.refuse(f"head_dim should be even for rope, found {config.head_dim}")
    return config


def _refuse_unimplemented(fields: _Fields) -> None:
    activation = fields.get("hidden_act", str, "silu")
    if activation != "silu":
        raise fields.refuse(f"hidden_act '{activation}' is not supported; only 'silu' is")
    if fields.section("quantization_config") is not None:
        raise fields.refuse("quantization_config: quantised weights are not supported")


def _llama(name: str, fields: _Fields) -> ModelConfig:
    bias = fields.get("attention_bias", bool, False)
    mlp_bias = fields.get("mlp_bias", bool, False)
    return _build(name, fields, None, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def _mistral(name: str, fields: _Fields) -> ModelConfig:
    for bias in ("attention_bias", "mlp_bias"):
        if fields.get(bias, bool, False):
            raise fields.refuse(f"{bias} is not part of {name}")
    window = fields.optional("sliding_window", 4096)
    return _build(name, fields, [window] * fields.positive("num_hidden_layers"))


def _qwen2(name: str, fields: _Fields) -> ModelConfig:
    return _build(name, fields, _qwen_windows(fields), qkv_bias=True)


def _qwen3(name: str, fields: _Fields) -> ModelConfig:
    bias = fields.get("attention_bias", bool, False)
    windows = _qwen_windows(fields)
    head_dim = fields.positive("head_dim", 128)
    return _build(
        name, fields, windows, head_dim=head_dim, qkv_bias=bias, out_bias=bias, qk_norm=True
    )


#: architecture in config.json -> its reader
_FAMILIES: dict[str, Callable[[str, _Fields], ModelConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _build(
    architecture: str,
    fields: _Fields,
    windows: list[int | None] | None,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelConfig:
    layers = fields.positive("num_hidden_layers")
    heads = fields.positive("num_attention_heads")
    hidden = fields.positive("hidden_size")
    if head_dim is None:
        head_dim = fields.optional("head_dim") or hidden // heads
    max_positions = fields.positive("max_position_embeddings")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.positive("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=fields.positive("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=max_positions,
        norm_eps=fields.get("rms_norm_eps", float, 1e-6),
        rope=_rope(fields, max_positions),
        windows=tuple(windows or [None] * layers),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        tied=fields.get("tie_word_embeddings", bool, False),
    )


def _rope(fields: _Fields, max_positions: int) -> RopeConfig:
    """transformers 5 writes rope_parameters; before it was rope_theta beside rope_scaling."""
    rope = fields.section("rope_parameters") or fields.section("rope_scaling")
    theta = fields.get("rope_theta", float, 10_000.0)
    if rope is None:
        return RopeConfig(theta)
    theta = rope.get("rope_theta", float, theta)
    if rope.get("partial_rotary_factor", float, 1.0) != 1.0:
        raise rope.refuse("partial_rotary_factor other than 1 is not supported")
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind != "llama3":
        raise rope.refuse(f"rope type '{kind}' is not supported; supported are default, llama3")
    scaling = Llama3Scaling(
        factor=rope.get("factor", float),
        low_freq_factor=rope.get("low_freq_factor", float),
        high_freq_factor=rope.get("high_freq_factor", float),
        original_max_positions=rope.positive("original_max_position_embeddings", max_positions),
    )
    return RopeConfig(theta, scaling)


def _qwen_windows(fields: _Fields) -> list[int | None]:
    """Qwen slides only on request, from layer max_window_layers on or where layer_types says."""
    layers = fields.positive("num_hidden_layers")
    if not fields.get("use_sliding_window", bool, False):
        return [None] * layers
    window = fields.optional("sliding_window", 4096)
    first = fields.get("max_window_layers", int, 28)
    kinds = fields.strings("layer_types")
    if not kinds:
        return [window if layer >= first else None for layer in range(layers)]
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != layers or not set(kinds) <= known.keys():
        raise fields.refuse(f"layer_types should name {layers} of {list(known)}, found {kinds}")
    return [known[kind] for kind in kinds]
