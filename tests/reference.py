"""What Baton is compared with: tiny checkpoints and greedy decoding made by transformers.

The reference attends to K and V rounded to FP16, current tokens included, as Baton's cache holds
them. Its cache keeps every position; a sliding window is the attention mask's work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SPECIALS = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>")
VOCAB_SIZE = 256 + len(SPECIALS)
CONTEXT = 512

_CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: Sizes are odd on purpose: no power of two hides a wrong stride.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 256,
    "eos_token_id": 257,
    # With the default 0.02 greedy output repeats one token and proves nothing.
    "initializer_range": 0.15,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama2": (LlamaConfig, {"num_key_value_heads": 6}),
    "llama3": (LlamaConfig, {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"sliding_window": 21}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 18, "tie_word_embeddings": True}),
}
FAMILIES = tuple(_FAMILIES)


def make_checkpoint(family: str, directory: Path, **over: Any) -> Path:
    """Write a random model of a family with tokenizer and chat template; returns ``directory``.

    ``over`` replaces fields of the config. The same arguments give the same weights.
    """
    kind, fields = _FAMILIES[family]
    config = kind(**(_COMMON | fields | over))
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms start at 1 and biases at 0: hide no mistake
                    parameter.add_(torch.randn_like(parameter), alpha=0.15)
    model.save_pretrained(directory)
    _write_tokenizer(directory)
    return directory


def _write_tokenizer(directory: Path) -> None:
    """One token per byte, ids 0 .. 255 in the order of the byte-level alphabet, then SPECIALS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "chat_template": _CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


class RoundingCache(DynamicCache):
    """Keeps K and V as FP16 would, and hands them out so from the first time on."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any) -> Any:
        key, value = (x.half().to(x.dtype) for x in (key_states, value_states))
        return super().update(key, value, layer_idx, *rest)


class Reference:
    """A transformers model in float32 with eager attention over a RoundingCache."""

    def __init__(self, directory: Path) -> None:
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        self._cache = RoundingCache()  # without the config, or it would cut to the window

    @torch.inference_mode()
    def extend(self, token_ids: Sequence[int]) -> Tensor:
        """Append tokens; logits float32 [len(token_ids), vocab]."""
        ids = torch.tensor([list(token_ids)])
        logits: Tensor = self._model(ids, past_key_values=self._cache, use_cache=True).logits[0]
        return logits


def reference_greedy(
    directory: Path, prompt_ids: Sequence[int], n: int
) -> tuple[list[int], list[float]]:
    """``n`` greedy tokens after the prompt, end-of-sequence ids ignored, and at each the gap
    between the two largest logits: where it is tiny, summation order may decide."""
    reference = Reference(directory)
    ids: list[int] = []
    gaps: list[float] = []
    logits = reference.extend(prompt_ids)[-1]
    while True:
        best, second = torch.topk(logits, 2).values.tolist()
        ids.append(int(logits.argmax()))
        gaps.append(best - second)
        if len(ids) == n:
            return ids, gaps
        logits = reference.extend(ids[-1:])[-1]
